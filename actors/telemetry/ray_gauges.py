"""Publishes metrics of a run through Ray for Prometheus; a dashboard in `cluster/monitoring` shows them."""

import re
from collections.abc import Mapping
from pathlib import Path

from ray.util.metrics import Gauge

from actors.telemetry.update_metrics import meaning_of


class Telemetry:
    """Holds a gauge `ray_rlhf_NAME` for each metric, tagged with the names of the run folder and its parent."""

    def __init__(self, out: Path) -> None:
        self._run = "/".join(out.parts[-2:])
        self._gauges: dict[str, Gauge] = {}

    def publish(self, metrics: Mapping[str, float]) -> None:
        """Sets the gauges to an update's metrics."""
        for name, value in metrics.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(gauge_name(name), description=meaning_of(name) or name, tag_keys=("run",))
            self._gauges[name].set(float(value), tags={"run": self._run})


def gauge_name(metric: str) -> str:
    """Returns the name of a metric's gauge, before which Ray puts `ray_`."""
    return "rlhf_" + re.sub(r"\W", "_", metric)
