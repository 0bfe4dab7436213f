"""Files: URLs, atomic writes, tables, images, checksums."""
