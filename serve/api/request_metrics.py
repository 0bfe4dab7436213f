"""The metrics at `/metrics` and the log line of each edit: requests, images, and where their time went."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.painting import Edit, PaintedEdit

logger = logging.getLogger("ray.serve")
REGISTRY = CollectorRegistry()
"""The metrics of this process; each ingress replica has its own."""
BY_POLICY = ["model", "policy_version", "standing"]
"""Labels by which a canary is compared with the current policy of its name."""
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
REQUESTS = Counter("prefpaint_requests", "Requests by path and status.", ["path", "status"], registry=REGISTRY)
LATENCY = Histogram(
    "prefpaint_request_seconds", "From request to last byte.", ["path"], buckets=SECONDS, registry=REGISTRY
)
WAITING = Gauge("prefpaint_requests_in_work", "Edits that wait or are painted.", registry=REGISTRY)
REFUSED = Counter("prefpaint_requests_refused", "Edits refused because too many wait.", registry=REGISTRY)
RETRIED = Counter("prefpaint_jobs_retried", "Jobs given to another replica after one died.", registry=REGISTRY)
IMAGES = Counter("prefpaint_images", "Images answered.", ["model", "policy_version"], registry=REGISTRY)
EDITS = Counter("prefpaint_edits", "Edits that were painted or failed.", [*BY_POLICY, "outcome"], registry=REGISTRY)
REWARDS = Histogram(
    "prefpaint_reward",
    "Rewards of painted samples, where a reward is served.",
    BY_POLICY,
    buckets=[step / 4 for step in range(-16, 17)],
    registry=REGISTRY,
)
QUEUED = Histogram("prefpaint_queued_seconds", "A job's wait for its first step.", buckets=SECONDS, registry=REGISTRY)
DENOISED = Histogram("prefpaint_denoised_seconds", "First step to image.", buckets=SECONDS, registry=REGISTRY)
BATCH = Histogram(
    "prefpaint_batch_images", "Images denoised together.", buckets=(1, 2, 4, 8, 16, 32), registry=REGISTRY
)


def record_edit(edit: Edit, painted: PaintedEdit, client: str, seconds: float) -> None:
    """Counts what was painted, and writes one structured log line; Ray Serve adds the request's id."""
    IMAGES.labels(edit.model, edit.policy.version).inc(len(painted.samples))
    EDITS.labels(*_labels(edit), "painted").inc()
    for score in painted.scores:
        if score.reward is not None:
            REWARDS.labels(*_labels(edit)).observe(score.reward)
    for job in painted.jobs:
        QUEUED.observe(job.queued_s)
        DENOISED.observe(job.denoised_s)
        BATCH.observe(job.batch_images)
    height, width = edit.canvas.hole.shape
    fields = {
        "client": client,
        "model": edit.model,
        "policy_version": edit.policy.version,
        "seed": edit.seed,
        "size": f"{width}x{height}",
        "tiles": edit.tiles,
        "samples": len(painted.samples),
        "steps": edit.asked.num_inference_steps,
        "seconds": round(seconds, 4),
        "queued_s": round(sum(job.queued_s for job in painted.jobs), 4),
        "batch_images": round(sum(job.batch_images for job in painted.jobs) / len(painted.jobs), 2),
    }
    logger.info("edit", extra=fields)


@contextmanager
def counting_failures(edit: Edit) -> Iterator[None]:
    """Counts an edit that fails, is late, or is refused by the safety checker; not one whose client leaves."""
    try:
        yield
    except Exception:  # Every kind counts, and goes on to those who answer it.
        EDITS.labels(*_labels(edit), "failed").inc()
        raise


def _labels(edit: Edit) -> tuple[str, str, str]:
    return edit.model, edit.policy.version, edit.standing


class LabelledMetrics(Collector):
    """The metrics of this process with the name of its copy as a label: any copy may answer a scrape."""

    def __init__(self, copy: str) -> None:
        self._copy = copy

    def collect(self) -> Iterator[Metric]:
        """Yields what the registry holds now."""
        for metric in REGISTRY.collect():
            metric.samples = [s._replace(labels=s.labels | {"copy": self._copy}) for s in metric.samples]
            yield metric


def render(copy: str | None = None) -> bytes:
    """Returns the metrics in Prometheus' text format, labelled with the name of one of several copies."""
    return generate_latest(REGISTRY if copy is None else LabelledMetrics(copy))


class Measured:
    """Middleware that counts requests by route and status, and measures their duration."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one request on. A client that leaves counts as 499, a path without a route as `other`."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 499

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_look)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            REQUESTS.labels(path, status).inc()
            LATENCY.labels(path).observe(time.perf_counter() - started)
