"""What a run is told: one typed section per stage, from YAML files and `--set`."""
