"""Alert rules and the service's dashboard: Prometheus' own tests, and that the metrics which they read exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from dashboard_panels import EXPRESSIONS, MONITORING

from serve.api.request_metrics import REGISTRY

ROOT = Path(__file__).parents[2]
RULES = [
    rule
    for file in sorted(MONITORING.glob("*_alerts.yaml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]
SERVICE = json.loads((MONITORING / "service_dashboard.json").read_text())
PANELS = [target["expr"] for panel in SERVICE["panels"] for target in panel["targets"]]
SUFFIXES = re.compile(r"_(bucket|sum|count|total)$")


def names_in(expressions: list[str], prefix: str) -> set[str]:
    return {name for expression in expressions for name in re.findall(rf"\b{prefix}\w+", expression)}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool of Debian's package prometheus is not installed")
@pytest.mark.parametrize(
    "command", ["check config cluster/monitoring/prometheus.yaml", "test rules tests/cluster/alerts_test.yaml"]
)
def test_prometheus_reads_the_files_and_each_alert_fires_for_its_event(command: str) -> None:
    done = subprocess.run(["promtool", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_service_has_every_metric_that_its_alerts_and_its_dashboard_read() -> None:
    read = names_in([rule["expr"] for rule in RULES] + PANELS, "prefpaint_")
    assert {SUFFIXES.sub("", name) for name in read} <= {metric.name for metric in REGISTRY.collect()}
    assert len(read) > 8


def test_alerts_of_runs_read_metrics_that_the_dashboard_of_runs_shows_or_a_run_counts_by() -> None:
    read = names_in([rule["expr"] for rule in RULES], "ray_rlhf_")
    assert read <= names_in(EXPRESSIONS, "ray_rlhf_") | {"ray_rlhf_update"}
    assert len(read) > 6


def test_every_alert_says_what_is_wrong_and_what_helps_and_is_in_the_documents() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    for rule in RULES:
        assert rule["annotations"].keys() == {"summary", "remedy"}
        assert f"| {rule['alert']} |" in page


def test_panels_of_the_service_have_places_of_their_own() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in SERVICE["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in SERVICE["panels"]})
