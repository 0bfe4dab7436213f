"""The annotation page as its script sees it, over HTTP."""

import io
import os
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi.testclient import TestClient
from PIL import Image
from small_study import Clock, open_small_study, start_server, write_study

from rlhf.data.annotators import load_annotations
from rlhf.errors import UserError
from serve.annotation.annotation_page import build_page
from serve.annotation.annotation_server import choose_token, listen, page_address
from serve.api.guard import is_loopback

PERSON = {"annotator": "ann"}
MARKS = {"structure": 4, "texture": 3.5, "overall": 6}
NOT_FINITE = b'{"marks": [{"position": 0, "structure": %s, "texture": 1, "overall": 1}]}'


@contextmanager
def client(folder: Path, token: str | None = None, **assignment: object) -> Iterator[tuple[TestClient, Clock]]:
    store, items, clock = open_small_study(folder, **assignment)
    with TestClient(build_page(store, items, folder / "annotations", token), raise_server_exceptions=False) as opened:
        yield opened, clock


def all_marks(pictures: int) -> dict[str, Any]:
    return {"marks": [{"position": position} | MARKS for position in range(pictures)]}


def test_a_person_judges_skips_and_undoes(tmp_path: Path) -> None:
    with client(tmp_path) as (page, _):
        assert "Who are you" in page.get("/").text
        task = page.post("/api/next", json=PERSON).json()["task"]
        assert task["pictures"] == 3
        assert page.put(f"/api/tasks/{task['key']}/marks", json=all_marks(3)).json() == {"stored": 3}
        view = page.post(f"/api/tasks/{task['key']}/finish").json()
        assert view["progress"] == {"judged": 1, "skipped": 0, "done": 1, "needed": 4}
        view = page.post(f"/api/tasks/{view['task']['key']}/skip").json()
        assert view["progress"]["skipped"] == 1
        page.post("/api/undo", json=PERSON)
        view = page.post("/api/undo", json=PERSON).json()
        assert view["task"]["key"] == task["key"]
        assert view["task"]["marks"][0] == {"position": 0} | MARKS


def test_pictures_are_those_of_the_prompt_in_the_tasks_order_and_unnamed(tmp_path: Path) -> None:
    with client(tmp_path) as (page, _):
        answer = page.post("/api/next", json=PERSON)
        task = answer.json()["task"]
        assert set(task) == {"key", "pictures", "marks"}
        shown = [page.get(f"/api/tasks/{task['key']}/pictures/{i}.png").content for i in range(3)]
        store, items, _ = open_small_study(tmp_path)
        stored = store.task(task["key"])
        assert shown == [items.candidates[stored.prompt_id][index] for index in stored.sample_order]
        masked = Image.open(io.BytesIO(page.get(f"/api/tasks/{task['key']}/masked.png").content))
        hole = items.masks[stored.prompt_id]
        assert {masked.getpixel((x, y)) for y, x in zip(*hole.nonzero(), strict=True)} == {(128, 128, 128)}


@pytest.mark.parametrize(
    "change",
    [
        {"overall": 7.5},
        {"overall": -1},
        {"overall": 3.3},
        {"overall": "4"},
        {"overall": None},
        {"overall": True},
        {"position": 3},
        {"position": -1},
        {"position": 10**30},
        {"position": 0.5},
        {"extra": 1},
    ],
)
def test_bad_marks_are_refused_with_a_message_and_nothing_is_stored(tmp_path: Path, change: dict[str, Any]) -> None:
    with client(tmp_path) as (page, _):
        key = page.post("/api/next", json=PERSON).json()["task"]["key"]
        answer = page.put(f"/api/tasks/{key}/marks", json={"marks": [{"position": 0} | MARKS | change]})
        assert answer.status_code == 400
        assert next(iter(change)) in answer.json()["error"]["message"] or "picture" in answer.json()["error"]["message"]
        assert page.get("/agreement").json()["images"] == 0


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/api/tasks/KEY/marks", b'{"marks": [{"position": 0, "structure": NaN, "texture": 1, "overall": 1}]}'),
        (
            "PUT",
            "/api/tasks/KEY/marks",
            b'{"marks": [{"position": 0, "structure": 1e999, "texture": 1, "overall": 1}]}',
        ),
        ("PUT", "/api/tasks/KEY/marks", b"{"),
        ("PUT", "/api/tasks/KEY/marks", b"\xff\xfe"),
        ("PUT", "/api/tasks/KEY/marks", b"[" * 100_000),
        ("PUT", "/api/tasks/KEY/marks", b" " * 2_000_000),
        ("PUT", "/api/tasks/KEY/marks", b'{"marks": ' + b"1" * 5000 + b"}"),
        ("PUT", "/api/tasks/KEY/marks", b""),
        ("POST", "/api/tasks/KEY/finish", b""),
        ("POST", "/api/tasks/00000000000000000000000000000000/finish", b""),
        ("POST", "/api/tasks/00000000000000000000000000000000/skip", b""),
        ("POST", "/api/tasks/..%2f..%00/renew", b""),
        ("GET", "/api/tasks/00000000000000000000000000000000/masked.png", b""),
        ("GET", "/api/tasks/KEY/pictures/3.png", b""),
        ("GET", "/api/tasks/KEY/pictures/x.png", b""),
        ("POST", "/api/next", b'{"annotator": ""}'),
        ("POST", "/api/next", b'{"annotator": "a\\u0000b"}'),
        ("POST", "/api/next", b'{"annotator": "\\ud800"}'),
        ("POST", "/api/next", b'{"annotator": "' + b"x" * 61 + b'"}'),
        ("POST", "/api/undo", b'{"annotator": "nobody"}'),
        ("POST", "/api/export", b""),
        ("GET", "/static/../annotation_page.py", b""),
        ("DELETE", "/api/next", b""),
    ],
)
def test_bad_requests_are_refused_in_json_and_never_fail(tmp_path: Path, method: str, path: str, body: bytes) -> None:
    with client(tmp_path) as (page, _):
        key = page.post("/api/next", json=PERSON).json()["task"]["key"]
        headers = {"content-type": "application/json"}
        answer = page.request(method, path.replace("KEY", key), content=body, headers=headers)
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["error"]["message"]


def test_an_expired_task_is_refused_with_a_word_for_programs(tmp_path: Path) -> None:
    with client(tmp_path, lease_s=60) as (page, clock):
        key = page.post("/api/next", json=PERSON).json()["task"]["key"]
        clock.now += 61
        answer = page.put(f"/api/tasks/{key}/marks", json=all_marks(1))
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "lease_expired"


def test_people_at_once_over_http_get_different_prompts(tmp_path: Path) -> None:
    write_study(tmp_path / "candidates", prompts=16, samples=1)
    keys: list[str] = []
    with client(tmp_path) as (page, _):

        def ask(name: str) -> None:
            keys.append(page.post("/api/next", json={"annotator": name}).json()["task"]["key"])

        threads = [threading.Thread(target=ask, args=(f"person {i}",)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store, items, _ = open_small_study(tmp_path)
        assert sorted(store.task(key).prompt_id for key in keys) == sorted(items.prompt_ids)


def test_stopping_the_server_exports(tmp_path: Path) -> None:
    with client(tmp_path) as (page, _):
        key = page.post("/api/next", json=PERSON).json()["task"]["key"]
        page.put(f"/api/tasks/{key}/marks", json=all_marks(3))
        assert page.post("/api/export").json()["judgements"] == 3
        page.put(f"/api/tasks/{key}/marks", json={"marks": [{"position": 0} | MARKS | {"overall": 0}]})
    rows = load_annotations(tmp_path / "annotations")
    assert sorted(row["overall"] for row in rows) == [0, 6, 6]


def test_agreement_counts_images_that_two_people_scored(tmp_path: Path) -> None:
    with client(tmp_path, overlap=2) as (page, _):
        for name, overall in (("ann", 1), ("bo", 2)):
            task = page.post("/api/next", json={"annotator": name}).json()["task"]
            marks = [{"position": i} | MARKS | {"overall": overall + i} for i in range(3)]
            page.put(f"/api/tasks/{task['key']}/marks", json={"marks": marks})
        figures = page.get("/agreement").json()
    assert figures["images_scored_by_several"] == 3
    assert figures["krippendorff_alpha"]["overall"] is not None


def test_a_database_that_fails_is_answered_in_json(tmp_path: Path) -> None:
    with client(tmp_path) as (page, _):
        with sqlite3.connect(tmp_path / "annotations" / "annotations.db") as other:
            other.execute("ALTER TABLE tasks RENAME TO gone")
        answer = page.post("/api/next", json=PERSON)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "database_unavailable"


def test_with_a_token_nothing_is_shown_without_it(tmp_path: Path) -> None:
    with client(tmp_path, token="secret") as (page, _):
        for path in ("/", "/?token=wrong", "/static/annotate.js", "/agreement", "/?token=%ff"):
            answer = page.get(path)
            assert answer.status_code == 401
            assert "?token=" in answer.json()["error"]["message"]
        assert page.post("/api/next", json=PERSON).status_code == 401
        assert page.get("/agreement", headers={"authorization": "Bearer secret"}).status_code == 200
        assert page.get("/?token=secret", follow_redirects=False).headers["location"] == "/"
        assert page.post("/api/next", json=PERSON).status_code == 200


def test_a_token_is_asked_for_beyond_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFPAINT_TOKEN", raising=False)
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "localhost"))
    assert choose_token("127.0.0.1") is None
    made = choose_token("0.0.0.0")
    assert made is not None
    assert page_address("10.0.0.5", 8001, made) == f"http://10.0.0.5:8001/?token={made}"
    monkeypatch.setenv("PREFPAINT_TOKEN", "ours")
    assert choose_token("example.org") == choose_token("127.0.0.1") == "ours"


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: cannot be listened on"):
            listen("127.0.0.1", port)


def test_kill_9_loses_no_judgement_and_sigterm_exports(tmp_path: Path) -> None:
    write_study(tmp_path / "candidates")
    process, address = start_server(tmp_path)
    stored = 0
    try:
        for _ in range(2):
            key = requests.post(f"{address}/api/next", json=PERSON, timeout=30).json()["task"]["key"]
            marks = all_marks(3 if stored == 0 else 2)
            stored += requests.put(f"{address}/api/tasks/{key}/marks", json=marks, timeout=30).json()["stored"]
            if stored == 3:
                assert requests.post(f"{address}/api/tasks/{key}/finish", timeout=30).ok
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    process, address = start_server(tmp_path)
    try:
        view = requests.post(f"{address}/api/next", json=PERSON, timeout=30).json()
        assert view["task"]["key"] == key
        assert len(view["task"]["marks"]) == 2
    finally:
        process.terminate()
        process.wait()
    assert len(load_annotations(tmp_path / "out")) == stored == 5
