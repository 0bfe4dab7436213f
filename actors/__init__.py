"""Who runs it: one Ray role per file, thin shells over `rlhf`."""
