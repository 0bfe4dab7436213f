"""The reward model learned from annotations, and the bound on its error."""
