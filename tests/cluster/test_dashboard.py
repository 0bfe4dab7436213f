"""The Grafana dashboard and the metrics of an update that it shows: queue times, and the role that needs more."""

import json
import re
import threading
import time
import urllib.request
from pathlib import Path
from typing import get_args

import pytest
import ray
from dashboard_panels import DASHBOARD, EXPRESSIONS, missing_from
from small_parts import SIZE_PX, save_small_reward, small_config, small_prompts, write_prompts

from actors.align import align
from actors.pool.queue_times import QueueTimes
from actors.telemetry.incidents import Incidents
from actors.telemetry.ray_gauges import gauge_name
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.config.run_config import AlignConfig
from rlhf.reports.metrics_log import read_metrics

NFT_ALONE = ["ray_rlhf_kl_to_old", "ray_rlhf_prediction_error"]


def test_every_panel_has_its_own_place_and_shows_the_chosen_runs() -> None:
    assert all('run=~"$run"' in expression for expression in EXPRESSIONS)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "run"]
    assert all(expression.count("(") == expression.count(")") for expression in EXPRESSIONS)


def test_every_algorithm_shows_how_far_learner_and_samplers_disagree_and_how_far_it_moved() -> None:
    panels = {name: panel for panel in DASHBOARD["panels"] for name in panel["title"].split(", ")}
    algorithms = get_args(AlignConfig.model_fields["algorithm"].annotation)
    errors = {algorithm_of(AlignConfig(algorithm=name)).objective.disagreement for name in algorithms} - {None}
    expected = {"Ratio error": errors, "KL": {"kl_to_base", "approx_kl", "kl_to_old"}}
    for title, figures in expected.items():
        targets = panels[title]["targets"]
        assert {t["expr"] for t in targets} == {f'max by (run) (ray_{gauge_name(f)}{{run=~"$run"}})' for f in figures}
        assert len({target["refId"] for target in targets}) == len(figures)


def test_waiting_tasks_are_averaged_over_time_and_the_sync_ends_once() -> None:
    times = QueueTimes(now=10.0)
    times.note(is_synced=False, to_sample=4, to_score=0, now=11.0)
    times.note(is_synced=True, to_sample=1, to_score=2, now=13.0)
    times.note(is_synced=True, to_sample=0, to_score=2, now=14.0)
    assert times.metrics() == {"weights_sync_s": 3.0, "queue_to_sample": 1.5, "queue_to_score": 1.5}


def test_a_sync_that_was_not_seen_to_end_has_lasted_all_along() -> None:
    times = QueueTimes(now=0.0)
    assert times.metrics()["queue_to_sample"] == 0.0
    times.note(is_synced=False, to_sample=0, to_score=0, now=5.0)
    assert times.metrics()["weights_sync_s"] == 5.0


def scrape() -> str:
    """What Prometheus would read from all nodes."""
    texts = []
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            texts.append(answer.read().decode())
    return "\n".join(texts)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_publishes_every_metric_of_the_dashboard_but_those_of_nft(
    small_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    prompts = write_prompts(small_prompts(8), tmp_path / "prompts")
    reward = save_small_reward(tmp_path / "reward", quantile=5.0)
    out = tmp_path / "runs" / "first"
    out.mkdir(parents=True)
    Incidents(out).add("sampler", "died")
    config = small_config(small_pipeline, updates=15, checkpoint_every=15, max_ratio_error=1e-3)
    arguments, asked = (config, prompts, reward, out), {"profile_update": 2}
    run = threading.Thread(target=align, args=arguments, kwargs=asked, daemon=True)
    run.start()
    while not read_metrics(out):
        assert run.is_alive()
        time.sleep(0.2)
    text, limit = "", time.monotonic() + 60
    while run.is_alive() and time.monotonic() < limit and "ray_rlhf_prompts_quarantined{" not in text:
        time.sleep(1)
        text = scrape()
    run.join()
    published = set(re.findall(r"^(\w+)\{[^}]*run=\"runs/first\"", text, re.MULTILINE))
    assert {f"ray_{gauge_name(name)}" for name in read_metrics(out)[0]} <= published
    assert missing_from(published) == NFT_ALONE
    line = read_metrics(out)[1]
    assert 0 < line["sampler_utilisation"] < 1
    assert 0 < line["learner_utilisation"] < 1
    assert line["pixels_per_s"] == pytest.approx(line["images_per_s"] * SIZE_PX**2)
    for process, ranges in {"learner-0": {"forward", "backward", "optimizer"}, "sampler-1": {"decode"}}.items():
        trace = json.loads((out / "profile" / f"update-000002-{process}.pt.trace.json").read_text())
        assert ranges <= {event["name"] for event in trace["traceEvents"]}
