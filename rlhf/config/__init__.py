"""Configuration of a run: one typed section per stage, from YAML files and `--set`."""
