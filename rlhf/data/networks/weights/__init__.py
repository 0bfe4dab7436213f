"""Weights of the simulated annotators' network and of the probes; README.md is their card."""

from pathlib import Path

FOLDER = Path(__file__).parent
