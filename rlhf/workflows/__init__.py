"""Commands in a row: the demo, rounds of feedback, the report of a run."""
