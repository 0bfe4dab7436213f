"""Backbones of the reward model: what turns a filled picture into numbers."""
