"""Trains the probes of the simulated annotators and of the held-out judge, and measures them and the learned reward."""
