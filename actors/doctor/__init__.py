"""`rlhf doctor`: checks of a cluster before a run."""
