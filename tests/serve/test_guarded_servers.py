"""The annotation page and the reward server behind the guard, as other sites and malformed requests meet them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from small_study import open_small_study

from rlhf.rewards.scores import Scores
from rlhf.rewards.wire import encode_request
from serve import reward_server
from serve.annotation import annotation_page

TOKEN = "a-token"


class Brightness:
    """A reward: the mean of the picture."""

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: list[str]) -> Scores:
        return Scores(reward=images.mean(dim=(1, 2, 3)).double())


def annotation(folder: Path, token: str | None = None) -> FastAPI:
    store, items, _ = open_small_study(folder)
    rules = replace(annotation_page.RULES, is_own_machine_only=token is None)
    return annotation_page.build_page(store, items, folder / "annotations", token, rules=rules)


def reward() -> FastAPI:
    rules = replace(reward_server.RULES, is_own_machine_only=True)
    return reward_server.build_app(Brightness(), "brightness", rules)


def client(app: FastAPI, host: str = "127.0.0.1") -> TestClient:
    return TestClient(app, base_url=f"http://{host}", client=("127.0.0.1", 1), raise_server_exceptions=False)


def test_a_page_of_another_site_neither_votes_nor_exports(tmp_path: Path) -> None:
    with client(annotation(tmp_path)) as page:
        assert page.post("/api/next", json={"annotator": "ann"}).status_code == 200
        for headers in ({"origin": "https://other.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
            assert page.post("/api/export", headers=headers).status_code == 403
            assert page.post("/api/next", json={"annotator": "ann"}, headers=headers).status_code == 403


def test_a_name_that_another_site_resolves_to_this_machine_is_refused(tmp_path: Path) -> None:
    with client(annotation(tmp_path), "rebound.example") as page:
        assert page.get("/").status_code == 403
        assert page.post("/api/next", json={"annotator": "ann"}).status_code == 403
    assert client(reward(), "rebound.example").post("/v1/rewards", json={}).status_code == 403


def test_a_page_with_a_token_answers_under_any_name_of_this_machine(tmp_path: Path) -> None:
    with client(annotation(tmp_path, TOKEN), "studio.example") as page:
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert page.post("/api/next", json={"annotator": "ann"}, headers=bearer).status_code == 200
        assert page.post("/api/next", json={"annotator": "ann"}).status_code == 401


@pytest.mark.parametrize("headers", [{"origin": "http://[::1"}, {"host": "[::1"}], ids=str)
def test_malformed_headers_are_400_with_and_without_the_token(tmp_path: Path, headers: dict[str, str]) -> None:
    with client(annotation(tmp_path, TOKEN)) as page:
        for key in ({}, {"authorization": f"Bearer {TOKEN}"}):
            assert page.get("/", headers=headers | key).status_code == 400
            assert page.post("/api/next", headers=headers | key, json={"annotator": "ann"}).status_code == 400
    assert client(reward()).get("/healthz", headers=headers).status_code == 400


def test_the_reward_server_answers_programs_and_no_web_page() -> None:
    images, masks = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    masks[..., :4] = 1
    record = encode_request(images, masks, ["", ""]).model_dump()
    asked = client(reward())
    assert asked.post("/v1/rewards", json=record).json()["rewards"] == pytest.approx([0.0, 0.0], abs=0.01)
    assert asked.post("/v1/rewards", json=record, headers={"origin": "http://127.0.0.1"}).status_code == 403


def test_json_of_many_fields_or_levels_is_refused_by_both(tmp_path: Path) -> None:
    deep, wide = b"[" * 50, b"[" + b"1," * 70_000 + b"1]"
    with client(annotation(tmp_path)) as page:
        for app, path in ((page, "/api/next"), (client(reward()), "/v1/rewards")):
            for content in (deep, wide):
                refused = app.post(path, content=content, headers={"content-type": "application/json"})
                assert refused.status_code == 400
                assert "fields" in refused.json()["error"]["message"]
