"""The annotation page's data: items to judge, their store, its database, and the export into tables."""
