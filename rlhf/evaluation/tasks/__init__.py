"""Image extension and new views, judged against the truth."""
