"""Ray for the time of a command: started on this machine alone or joined, and watched."""
