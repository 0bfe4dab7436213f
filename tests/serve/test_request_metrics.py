"""The metrics at /metrics, of one copy of the interface and of several."""

from prometheus_client.parser import text_string_to_metric_families

from serve.api.request_metrics import REFUSED, render


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
