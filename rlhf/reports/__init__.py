"""Numbers for people: intervals, tests, charts, pages, run logs, trackers."""
