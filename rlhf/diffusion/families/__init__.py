"""Families of models: what is true of one kind of pipeline only."""
