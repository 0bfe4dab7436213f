"""What a run of `rlhf align` will take, before it starts."""
