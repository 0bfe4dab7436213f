"""A run's figures as Ray's metrics, which Prometheus scrapes from every node and `cluster/grafana.json` shows."""

import re
from typing import Any

from ray.util.metrics import Gauge


class Telemetry:
    """A gauge per figure, `ray_rlhf_NAME` in Prometheus, with the run's name as a tag."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def publish(self, metrics: dict[str, Any]) -> None:
        """Set the gauges to an update's figures."""
        for name, value in metrics.items():
            if name not in self._gauges:
                safe = re.sub(r"\W", "_", name)
                self._gauges[name] = Gauge(f"rlhf_{safe}", description=f"{name} of the last update", tag_keys=("run",))
            self._gauges[name].set(float(value), tags={"run": self._run})
