"""Measures of the base models on held-out photographs: round trips, fills, classical fills."""
