"""Every route of the three servers, and whether it asks for a key: a new route that forgets to ask fails by name."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.serve.context
from fastapi import FastAPI
from fastapi.routing import APIRouter
from fastapi.testclient import TestClient
from small_study import open_small_study
from starlette.routing import BaseRoute, Mount

from rlhf.rewards.seam import Seam
from serve.annotation.annotation_page import build_page
from serve.api.admission import Admission
from serve.api.api_keys import ApiKeys, parse_keys
from serve.api.http_api import api
from serve.reward_server import build_app

OPEN_OF_EDITS = {
    "GET /",
    "GET /docs",
    "GET /healthz",
    "GET /openapi.json",
    "GET /readyz",
    "GET /static/{name}",
    "GET /v1/files/{name}",  # The name itself is the key.
    "HEAD /healthz",
    "HEAD /openapi.json",
    "HEAD /readyz",
}
KEYED_OF_EDITS = {"GET /metrics", "GET /v1/models", "GET /v1/models/{name}", "POST /v1/images/edits"}
KEYED_OF_ANNOTATION = {
    "GET /",
    "GET /agreement",
    "GET /api/tasks/{key}/masked.png",
    "GET /api/tasks/{key}/pictures/{position}.png",
    "GET /openapi.json",
    "GET /static/annotate.css",
    "HEAD /openapi.json",
    "POST /api/export",
    "POST /api/next",
    "POST /api/tasks/{key}/finish",
    "POST /api/tasks/{key}/renew",
    "POST /api/tasks/{key}/skip",
    "POST /api/undo",
    "PUT /api/tasks/{key}/marks",
}
OPEN_OF_REWARD = {
    f"{method} {path}"
    for path in ("/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc")
    for method in ("GET", "HEAD")
} | {"GET /healthz", "POST /v1/rewards"}


def flatten(routes: list[BaseRoute]) -> Iterator[BaseRoute]:
    """The routes themselves; FastAPI keeps those of an included router in a node of its own."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from flatten(inner.routes) if isinstance(inner, APIRouter) else [route]


def list_routes(app: FastAPI) -> set[str]:
    found = set()
    for route in flatten(app.routes):
        if isinstance(route, Mount):
            found.add(f"GET {route.path}/annotate.css")
        else:
            found |= {f"{method} {route.path}" for method in route.methods}
    return found


def asking(routes: set[str], *, key: bool = True) -> dict[str, bool]:
    return dict.fromkeys(routes, key)


def find_keyed(app: FastAPI) -> dict[str, bool]:
    """Each route, and whether it refuses a request without a key."""
    client = TestClient(
        app, base_url="http://127.0.0.1", client=("127.0.0.1", 1), raise_server_exceptions=False, follow_redirects=False
    )
    answers = {}
    for route in list_routes(app):
        method, path = route.split()
        answers[route] = client.request(method, re.sub(r"\{\w+\}", "0", path)).status_code == 401
    return answers


def test_the_edit_service_asks_for_a_key_wherever_it_works_or_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    service = SimpleNamespace(admission=Admission(ApiKeys(parse_keys("alice:" + "0" * 64, "keys")), 1), store=None)
    # Ray binds the routes to the replica that runs in this process.
    monkeypatch.setattr(ray.serve.context, "_INTERNAL_REPLICA_CONTEXT", SimpleNamespace(servable_object=service))
    assert find_keyed(api) == asking(KEYED_OF_EDITS) | asking(OPEN_OF_EDITS, key=False)


def test_the_annotation_server_asks_for_its_token_everywhere(tmp_path: Path) -> None:
    store, items, _ = open_small_study(tmp_path)
    app = build_page(store, items, tmp_path / "annotations", "a-token")
    assert find_keyed(app) == asking(KEYED_OF_ANNOTATION)


def test_the_reward_server_has_no_keys() -> None:
    assert find_keyed(build_app(Seam(), "seam")) == asking(OPEN_OF_REWARD, key=False)
