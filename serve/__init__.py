"""The services: image edits on Ray Serve, rewards over HTTP, and the annotation page."""
