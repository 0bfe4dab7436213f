"""What `rlhf check-cluster` knows of each kind of cluster file."""
