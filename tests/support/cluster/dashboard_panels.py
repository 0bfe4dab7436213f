"""The panels of cluster/monitoring/training_dashboard.json and the metrics that they read."""

import json
import re
from pathlib import Path

import rlhf

MONITORING = Path(rlhf.__file__).parents[1] / "cluster" / "monitoring"
DASHBOARD = json.loads((MONITORING / "training_dashboard.json").read_text())

EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def missing_from(published: set[str]) -> list[str]:
    """Metrics of the dashboard, some of them patterns, that are not among those published."""
    names = {name for expression in EXPRESSIONS for name in re.findall(r"ray_rlhf_[\w.+]+", expression)}
    return [name for name in sorted(names) if not any(re.fullmatch(name, found) for found in published)]
