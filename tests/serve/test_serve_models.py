"""Several models in one service: names, policies, canaries, swaps, deaths; on Ray started for this file alone."""

import base64
import concurrent.futures
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openai
import pytest
import requests
from small_service import (
    HOLE,
    IMAGE,
    MASK,
    PHOTOGRAPH,
    decode,
    images_of,
    png,
    post,
    running_service,
    save_models,
)

from rlhf.promotion.catalogue import Catalogue, ServedName, describe_policy, write_catalogue
from serve.api.served_names import REFRESH_S

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    settings = save_models(folder) | {"replicas": 2, "num_cpus": 1, "upload_timeout_s": 3.0}
    with running_service(settings) as started:
        yield started


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none is needed", max_retries=0)


def wait_until(is_true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def put(folder: Path, version: int, name: str = "trial", **fields: object) -> ServedName:
    """Promote a policy by hand."""
    served = ServedName(base=str(folder / "model"), current=describe_policy(folder / f"policy-{version}"), **fields)
    write_catalogue(Catalogue(models={name: served}), folder / "names.json")
    return served


def version_of(address: str, **form: object) -> str:
    return post(address, **form).headers.get("x-policy-version", "")


def test_the_official_client_edits_an_image(client: openai.OpenAI):
    answer = client.images.edit(image=("i.png", IMAGE), mask=("m.png", MASK), prompt="a chair", model="aligned", n=2)
    assert len(answer.data) == 2
    assert np.array_equal(decode(answer.data[0].b64_json)[~HOLE], PHOTOGRAPH[~HOLE])
    assert [model.id for model in client.models.list()] == ["model", "aligned", "whole"]
    assert client.models.retrieve("aligned").id == "aligned"


def test_the_official_client_streams_estimates_and_the_same_answer(client: openai.OpenAI):
    asked = {"image": ("i.png", IMAGE), "mask": ("m.png", MASK), "prompt": "", "extra_body": {"seed": 5}}
    events = list(client.images.edit(**asked, stream=True, partial_images=2))
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    whole = client.images.edit(**asked).data[0].b64_json
    assert events[-1].b64_json == whole
    assert events[0].b64_json != whole
    for event in events:
        assert np.array_equal(decode(event.b64_json)[~HOLE], PHOTOGRAPH[~HOLE])


def test_the_official_client_raises_its_own_errors(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.images.edit(image=("i.png", IMAGE), mask=("m.png", MASK), prompt="", model="gpt-image-1")
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(image=("i.png", b"nonsense"), prompt="")
    assert refused.value.param == "image"


def test_a_large_hole_is_painted_in_squares_and_streams_what_is_there(address: str):
    hole = np.zeros((130, 200), bool)
    hole[:, 60:] = True
    mask = png(np.dstack([PHOTOGRAPH, np.where(hole, 0, 255).astype(np.uint8)]))
    (image,) = images_of(post(address, mask=mask, seed=1))
    assert np.array_equal(image[~hole], PHOTOGRAPH[~hole])
    response = post(address, mask=mask, seed=1, stream=True, partial_images=2)
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    assert [e["type"].rpartition(".")[2] for e in events] == ["partial_image", "partial_image", "completed"]
    assert np.array_equal(decode(events[-1]["b64_json"]), image)
    scored = post(address, mask=mask, seed=1, n=2, best_of=3).json()["data"]
    assert scored[0]["lower"] >= scored[1]["lower"]


def test_images_are_answered_as_urls_and_found_there(address: str):
    direct, stored = post(address, seed=2), post(address, seed=2, response_format="url").json()["data"][0]
    fetched = requests.get(stored["url"], timeout=30)
    assert fetched.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(images_of(direct)[0]), decode(base64.b64encode(fetched.content).decode()))
    for name in ("x.png", "..%2F..%2Fnames.json", "a" * 32 + ".png"):
        assert requests.get(f"{address}/v1/files/{name}", timeout=30).status_code == 404


def test_policies_of_one_base_paint_differently_in_one_batch_and_each_as_alone(address: str):
    names = ["model", "aligned", "whole"]
    alone = {name: images_of(post(address, model=name, seed=3))[0] for name in names}
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda name: images_of(post(address, model=name, seed=3))[0], names * 2))
    for name, image in zip(names * 2, together, strict=True):
        rounding = 1
        assert np.abs(image.astype(int) - alone[name]).max() <= rounding
    assert not np.array_equal(alone["model"], alone["aligned"])
    assert not np.array_equal(alone["aligned"], alone["whole"])


def test_a_promoted_policy_answers_and_older_versions_can_be_asked_for(address: str, folder: Path):
    old = put(folder, 1)
    wait_until(lambda: version_of(address, model="trial") == old.current.version)
    new = put(folder, 3, previous=old.current)
    wait_until(lambda: version_of(address, model="trial") == new.current.version)
    first = post(address, model="trial", policy_version=old.current.version, seed=4)
    assert first.headers["x-policy-version"] == old.current.version
    assert first.json()["data"] == post(address, model="aligned", seed=4).json()["data"]
    assert version_of(address, model="trial", policy_version=1) == old.current.version
    assert post(address, model="trial", policy_version="2").status_code == 404


def test_a_canary_answers_about_its_share(address: str, folder: Path):
    served = put(folder, 1, name="canary", canary=describe_policy(folder / "policy-3"), canary_share=0.5)
    wait_until(lambda: post(address, model="canary").status_code == 200)
    versions = [version_of(address, model="canary", num_inference_steps=1) for _ in range(24)]
    assert served.canary is not None
    assert set(versions) == {served.current.version, served.canary.version}


def test_a_policy_that_does_not_load_never_answers(address: str, folder: Path):
    good = put(folder, 3, name="careful")
    wait_until(lambda: version_of(address, model="careful") == good.current.version)
    broken = good.current.model_copy(update={"folder": folder / "nowhere", "version": "9-00000000"})
    for text in ("{", None):
        if text is None:
            write_catalogue(
                Catalogue(models={"careful": good.model_copy(update={"current": broken})}), folder / "names.json"
            )
        else:
            (folder / "names.json").write_text(text)
        deadline = time.monotonic() + 2 * REFRESH_S
        while time.monotonic() < deadline:  # Every request may read the catalogue again.
            assert version_of(address, model="careful") == good.current.version


@contextmanager
def asking(address: str, **form: object) -> Iterator[list[requests.Response]]:
    """Four clients that ask again and again until the block ends; yields their answers so far."""
    answers: list[requests.Response] = []
    stopped = threading.Event()

    def ask() -> None:
        while not stopped.is_set():
            answers.append(post(address, **form))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask) for _ in range(4)]
        try:
            yield answers
        finally:
            stopped.set()
            for client in clients:
                client.result()


def test_swapping_under_load_fails_no_request(address: str, folder: Path):
    put(folder, 1, name="swapped")
    wait_until(lambda: post(address, model="swapped").status_code == 200)
    with asking(address, model="swapped", num_inference_steps=3) as answers:
        for version in (3, 1, 3):
            put_version = put(folder, version, name="swapped").current.version
            wait_until(lambda wanted=put_version: answers[-1:] and answers[-1].headers["x-policy-version"] == wanted)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-policy-version"] for answer in answers}) == 2


def replica_pids(kind: str) -> list[int]:
    """Processes of replicas, as Ray names them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if title.startswith("ray::ServeReplica:prefpaint:" + kind):
                found.append(int(entry.name))
    return found


def test_killed_replicas_fail_no_request(address: str):
    expected = post(address, seed=8, num_inference_steps=30).json()["data"][0]
    with asking(address, seed=8, num_inference_steps=30) as answers:
        wait_until(lambda: len(answers) >= 4)
        before = replica_pids("Inpainter")
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: len(replica_pids("Inpainter")) == 2 and before[0] not in replica_pids("Inpainter"), 60)
        count = len(answers)
        wait_until(lambda: len(answers) >= count + 8)
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json()["data"][0].keys() == expected.keys() for answer in answers)


def test_a_slow_upload_ends_and_others_are_answered_meanwhile(address: str):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        head = f"POST /v1/images/edits HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + b'{"image": "')
        assert post(address).status_code == 200
        answer = slow.recv(65536)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408"), answer


def test_a_client_that_leaves_frees_its_place(address: str):
    def in_work() -> float:
        text = requests.get(f"{address}/metrics", timeout=30).text
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith("prefpaint_requests_in_")))

    files = {"image": ("i.png", IMAGE), "mask": ("m.png", MASK)}
    for stream in ("false", "true"):
        form = {"num_inference_steps": 100, "n": 8, "stream": stream}
        with pytest.raises(requests.exceptions.RequestException):
            requests.post(f"{address}/v1/images/edits", files=files, data=form, timeout=0.7)
        wait_until(lambda: in_work() == 0, 4)


def test_metrics_count_requests_and_images(address: str):
    def images() -> float:
        text = requests.get(f"{address}/metrics", timeout=30).text
        rows = [line for line in text.splitlines() if line.startswith('prefpaint_images_total{model="whole"')]
        return float(rows[0].split()[-1]) if rows else 0.0

    before = images()
    assert post(address, model="whole", n=2).status_code == 200
    assert images() == before + 2


def test_pages_of_other_sites_are_refused(address: str):
    files = {"image": ("i.png", IMAGE), "mask": ("m.png", MASK)}
    url = f"{address}/v1/images/edits"
    other = requests.post(url, files=files, headers={"origin": "https://elsewhere.example"}, timeout=30)
    assert (other.status_code, other.json()["error"]["code"]) == (403, "cross_origin")
    assert requests.post(url, files=files, headers={"origin": address}, timeout=60).status_code == 200
    assert "access-control-allow-origin" not in other.headers
