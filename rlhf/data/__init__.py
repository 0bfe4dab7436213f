"""Photographs to prompts, prompts to annotations; the gold judge; data of other projects."""
