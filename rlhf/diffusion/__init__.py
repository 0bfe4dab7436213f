"""Diffusion models that the project ships."""
