"""The Ray processes of training: one role per file, thin shells over `rlhf`."""
