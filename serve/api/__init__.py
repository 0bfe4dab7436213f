"""The HTTP interface: requests, limits, answers."""
