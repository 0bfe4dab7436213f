"""The kinds of reward, one file each, and their weighted sum."""
