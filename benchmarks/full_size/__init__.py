"""The whole method at full size, on a CPU."""
