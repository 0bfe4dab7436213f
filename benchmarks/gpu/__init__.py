"""Rollouts and training at full size on one GPU."""
