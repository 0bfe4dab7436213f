"""What Prometheus is told at `/metrics`: requests, images, and where their time went."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.painting import Painted

REGISTRY = CollectorRegistry()
"""Of this process; with several ingress replicas each tells its own."""
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
REQUESTS = Counter("prefpaint_requests", "Requests by path and status.", ["path", "status"], registry=REGISTRY)
LATENCY = Histogram(
    "prefpaint_request_seconds", "From request to last byte.", ["path"], buckets=SECONDS, registry=REGISTRY
)
WAITING = Gauge("prefpaint_requests_in_work", "Edits that wait or are painted.", registry=REGISTRY)
REFUSED = Counter("prefpaint_requests_refused", "Edits refused because too many wait.", registry=REGISTRY)
RETRIED = Counter("prefpaint_jobs_retried", "Jobs given to another replica after one died.", registry=REGISTRY)
IMAGES = Counter("prefpaint_images", "Images answered.", ["model", "policy_version"], registry=REGISTRY)
QUEUED = Histogram("prefpaint_queued_seconds", "A job's wait for its first step.", buckets=SECONDS, registry=REGISTRY)
DENOISED = Histogram("prefpaint_denoised_seconds", "First step to image.", buckets=SECONDS, registry=REGISTRY)
BATCH = Histogram(
    "prefpaint_batch_images", "Images denoised together.", buckets=(1, 2, 4, 8, 16, 32), registry=REGISTRY
)
PATHS = {"/", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/images/edits", "/docs", "/openapi.json"}


def observe(painted: Painted, model: str, version: str) -> None:
    """Count what was painted."""
    IMAGES.labels(model, version).inc(len(painted.samples))
    for job in painted.jobs:
        QUEUED.observe(job.queued_s)
        DENOISED.observe(job.denoised_s)
        BATCH.observe(job.batch_images)


def render() -> bytes:
    """In Prometheus' text format."""
    return generate_latest(REGISTRY)


class Measured:
    """Middleware that counts requests by path and status, and takes their time."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; a client that leaves counts as 499."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        path = path if path in PATHS else "other"
        started, status = time.perf_counter(), 499

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_look)
        finally:
            REQUESTS.labels(path, status).inc()
            LATENCY.labels(path).observe(time.perf_counter() - started)
