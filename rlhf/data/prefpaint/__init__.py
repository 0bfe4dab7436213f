"""PrefPaint's released data: their layout, and how they become our tables."""
