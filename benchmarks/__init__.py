"""Measurements, each a command; not tests, since they depend on the machine."""
