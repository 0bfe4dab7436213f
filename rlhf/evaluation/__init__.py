"""Judges, measures and comparisons of models on held-out prompts."""
