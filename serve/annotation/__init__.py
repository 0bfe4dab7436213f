"""The page on which people annotate."""
