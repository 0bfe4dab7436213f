"""What a run tells while it runs: its progress, its gauges and the losses of its workers."""
