"""Image extension and new views, compared with the truth."""
