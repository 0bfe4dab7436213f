"""Who uses it: the Ray Serve application and its HTTP interface."""
