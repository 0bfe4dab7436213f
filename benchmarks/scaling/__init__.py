"""A cluster of stand-ins: what the coordinator can drive, and how the run files share their GPUs."""
