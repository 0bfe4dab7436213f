"""One short file per algorithm: which steps are random and trained, what counts as an advantage, and the loss."""
