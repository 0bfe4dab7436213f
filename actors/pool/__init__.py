"""A pool of workers that Ray runs: tasks, their answers, lost workers and quarantined prompts."""
