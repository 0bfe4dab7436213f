"""Photographs from elsewhere (new views) and wider ones (extension)."""
