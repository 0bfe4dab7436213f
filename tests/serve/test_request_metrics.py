"""The metrics at /metrics, of one copy of the interface and of several."""

import asyncio

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rlhf.diffusion.tiles import Canvas
from rlhf.errors import UserError
from rlhf.promotion.catalogue import ServedName, ServedPolicy
from serve.api.edit_request import EditRequest
from serve.api.painting import Edit, PaintedEdit, plan_edit
from serve.api.request_metrics import REFUSED, counting_failures, record_edit, render
from serve.api.served_names import Chosen
from serve.engine.jobs import Inpainted, SampleScore


def refused(text: bytes) -> dict[tuple[tuple[str, str], ...], float]:
    families = text_string_to_metric_families(text.decode())
    samples = [sample for family in families for sample in family.samples]
    return {tuple(s.labels.items()): s.value for s in samples if s.name == "prefpaint_requests_refused_total"}


def test_metrics_of_copies_are_told_apart_and_those_of_one_have_no_label() -> None:
    REFUSED.inc(3)
    ((labels, count),) = refused(render()).items()
    assert labels == ()
    assert refused(render("a1b2")) == {(("copy", "a1b2"),): count}
    assert refused(render("c3d4")) == {(("copy", "c3d4"),): count}
    assert refused(render()) == {(): count}, "labelling leaves the metrics as they are"


JOB = Inpainted(
    images=np.zeros((1, 64, 64, 3), dtype=np.uint8),
    scores=(),
    unsafe=(),
    queued_s=0.1,
    denoised_s=0.2,
    batch_images=1.0,
)
CANARY, PREVIOUS = ServedPolicy(version="2-b"), ServedPolicy(version="0-a")
SERVED = ServedName(base="tiny", canary=CANARY, canary_share=0.1, previous=PREVIOUS)


def edit_of(policy: ServedPolicy) -> Edit:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    hole = np.zeros((64, 64), dtype=bool)
    hole[8:24, 8:24] = True
    chosen = Chosen("counted", SERVED, policy)
    return plan_edit(
        EditRequest.model_validate({}),
        Canvas(rgb=pixels, hole=hole, rgba=np.dstack([pixels, pixels[..., :1]])),
        chosen,
        [(64, 64)],
    )


def counts(name: str, *labels: str) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(render().decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for sample in samples
        if sample.labels["model"] == "counted"
    }


def test_edits_and_rewards_are_counted_by_the_standing_of_their_policy() -> None:
    for policy, reward in ((SERVED.current, 0.3), (CANARY, -0.8), (PREVIOUS, None)):
        edit = edit_of(policy)
        painted = PaintedEdit(samples=[edit.canvas], scores=[SampleScore(reward, None, None)], unsafe=[], jobs=[JOB])
        record_edit(edit, painted, "someone", 1.0)
    with pytest.raises(UserError), counting_failures(edit_of(CANARY)):
        raise UserError("no replica")
    with pytest.raises(asyncio.CancelledError), counting_failures(edit_of(CANARY)):
        raise asyncio.CancelledError
    with counting_failures(edit_of(CANARY)):
        pass
    expected = {(standing, "painted"): 1.0 for standing in ("current", "canary", "previous")}
    expected["canary", "failed"] = 1.0
    edits = counts("prefpaint_edits_total", "standing", "outcome")
    assert edits == expected, "a client that leaves is no failure"
    assert counts("prefpaint_reward_count", "standing") == {("current",): 1.0, ("canary",): 1.0}
    buckets = counts("prefpaint_reward_bucket", "standing", "le")
    assert (buckets["canary", "-1.0"], buckets["canary", "-0.75"]) == (0.0, 1.0)
    assert (buckets["current", "0.25"], buckets["current", "0.5"]) == (0.0, 1.0)
