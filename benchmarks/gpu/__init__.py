"""Benchmarks of rollouts and training at full size on one GPU."""
