"""A run's figures as Ray's metrics, which Prometheus scrapes from every node and `cluster/grafana.json` shows."""

import re
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge


class Telemetry:
    """A gauge per figure, `ray_rlhf_NAME` in Prometheus, with the run folder's name and its parent's as a tag."""

    def __init__(self, out: Path) -> None:
        self._run = "/".join(out.parts[-2:])
        self._gauges: dict[str, Gauge] = {}

    def publish(self, metrics: dict[str, Any]) -> None:
        """Set the gauges to an update's figures."""
        for name, value in metrics.items():
            if name not in self._gauges:
                description = f"{name} of the last update"
                self._gauges[name] = Gauge(gauge_name(name), description=description, tag_keys=("run",))
            self._gauges[name].set(float(value), tags={"run": self._run})


def gauge_name(figure: str) -> str:
    """Ray puts `ray_` before it."""
    return "rlhf_" + re.sub(r"\W", "_", figure)
