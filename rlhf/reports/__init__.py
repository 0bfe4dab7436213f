"""Figures for readers: intervals, tests, charts, pages, run logs, trackers."""
