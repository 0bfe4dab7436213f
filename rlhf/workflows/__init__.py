"""Sequences of commands: the demo, rounds of feedback, and the report of a run."""
