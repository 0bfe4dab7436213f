"""The built-in model: its parts, its training, its quality."""
