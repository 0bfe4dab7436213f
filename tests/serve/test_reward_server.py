"""A reward behind HTTP: the reference server on a free port, and servers that misbehave."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import torch
from small_parts import save_small_reward, small_prompts

from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.open_reward import build_reward
from rlhf.rewards.wire import MAX_IMAGES, RewardRequest, decode_request, encode_request, images_at_once

CPU = torch.device("cpu")
Answer = tuple[int, bytes, bool]
"""Status, body, and whether the server is silent instead."""


def batch(count: int = 3) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    prompts = small_prompts(count)
    return torch.stack([p.image for p in prompts]), torch.stack([p.mask for p in prompts]), ["abc"] * count


def good(count: int = 3) -> Answer:
    return 200, json.dumps({"rewards": [float(i) for i in range(count)]}).encode(), False


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[str, list[dict]]]]:
    """Start a server that gives these answers in turn (the last one again and again); returns URL and requests."""
    servers, is_over = [], threading.Event()

    def start(*answers: Answer) -> tuple[str, list[dict]]:
        seen: list[dict] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802
                seen.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                status, body, is_silent = answers[min(len(seen), len(answers)) - 1]
                if is_silent:
                    is_over.wait()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1/rewards", seen

    yield start
    is_over.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(url: str, count: int = 3, **settings: object) -> torch.Tensor:
    entry = RewardEntry(kind="http", name="remote", url=url, **({"timeout_s": 5.0, "retries": 1} | settings))
    return build_reward(entry, None, CPU).score(*batch(count)).reward


def test_a_request_of_too_many_pixels_is_refused_before_all_are_decoded_and_the_client_sends_fewer() -> None:
    [image] = encode_request(torch.zeros(1, 3, 1200, 1200), torch.zeros(1, 1, 1200, 1200), [""]).images
    request = RewardRequest(images=[image] * 56, masks=["no picture"] * 56, captions=[""] * 56)
    with pytest.raises(UserError, match="56 images of 1200x1200 are more than 80 megapixels; send 55 at a time"):
        decode_request(request)
    assert [images_at_once(pixels) for pixels in (64**2, 1024**2, 1200**2, 10**9)] == [MAX_IMAGES, MAX_IMAGES, 55, 1]


def test_what_is_sent_is_what_was_made_bit_for_bit() -> None:
    images, masks, captions = batch()
    request = encode_request(images, masks, captions)
    again = decode_request(request)
    assert torch.equal(again[0], images)
    assert torch.equal(again[1], masks)
    assert request.captions == captions


def test_a_server_that_fails_once_is_asked_again(scripted: Callable) -> None:
    url, seen = scripted((500, b"out of memory", False), good())
    assert ask(url).tolist() == [0.0, 1.0, 2.0]
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert set(seen[0]) == {"images", "masks", "captions"}


def test_a_server_that_is_slow_once_is_asked_again(scripted: Callable) -> None:
    url, seen = scripted((200, b"{}", True), good())
    assert ask(url, timeout_s=0.5).tolist() == [0.0, 1.0, 2.0]
    assert len(seen) == 2


def test_null_and_nan_are_no_numbers(scripted: Callable) -> None:
    for body in (b'{"rewards": [1, null, 3]}', b'{"rewards": [1, NaN, 3]}'):
        url, _ = scripted((200, body, False))
        assert ask(url).isnan().tolist() == [False, True, False]


def test_large_batches_are_sent_in_parts(scripted: Callable) -> None:
    url, seen = scripted(good(MAX_IMAGES), good(2))
    assert len(ask(url, count=MAX_IMAGES + 2)) == MAX_IMAGES + 2
    assert [len(body["images"]) for body in seen] == [MAX_IMAGES, 2]


@pytest.mark.parametrize(
    ("answer", "tries", "message"),
    [
        ((500, b"out of memory", False), 2, r"answered 500: out of memory \(2 tries\)"),
        ((503, b"", False), 2, "answered 503"),
        ((429, b"busy", False), 2, "answered 429: busy"),
        ((200, b"", True), 2, r"gave no whole answer within 0\.4 s; raise timeout_s"),
        ((404, b"no such path", False), 1, "refused the request with 404: no such path"),
        ((200, b"<html>", False), 1, "answered '<html>', which is not"),
        ((200, b'{"scores": [1, 2, 3]}', False), 1, "rewards: Field required"),
        ((200, b'{"rewards": ["1", "2", "3"]}', False), 1, "rewards.0: "),
        ((200, b'{"rewards": [1, 2]}', False), 1, "answered 2 rewards for 3 images"),
        ((200, b"\xff\xfe", False), 1, "which is not"),
    ],
)
def test_a_server_that_does_not_mend_is_told_apart(
    scripted: Callable, answer: Answer, tries: int, message: str
) -> None:
    url, seen = scripted(answer)
    with pytest.raises(UserError, match=f"reward remote: {re.escape(url)} .*{message}"):
        ask(url, timeout_s=0.4)
    assert len(seen) == tries


def test_where_no_server_listens_the_address_is_named() -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1/rewards does not answer .*is the server running"):
        ask("http://127.0.0.1:9/v1/rewards", retries=0)


def start_server(*arguments: object, cwd: Path) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-m", "rlhf", "reward-server", *map(str, arguments), "--port", "0"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+/v1/rewards", line)
    assert found, line + (process.communicate()[1] if process.poll() is not None else "")
    return process, found.group()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`rlhf reward-server` of a small reward folder, on a free port."""
    folder = tmp_path_factory.mktemp("served")
    reward = save_small_reward(folder / "reward")
    process, url = start_server(reward, cwd=folder)
    yield url, reward
    process.terminate()
    assert process.wait(timeout=20) is not None


def test_the_reference_server_gives_the_rewards_of_its_folder(served: tuple[str, Path]) -> None:
    url, folder = served
    images, masks, _ = batch()
    assert torch.allclose(ask(url), load_reward(folder).score(images, masks).reward, atol=1e-9)
    health = requests.get(url.replace("/v1/rewards", "/healthz"), timeout=10)
    assert health.json() == {"status": "ok", "reward": "model"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "images"),
        ({"masks": []}, "not equally many"),
        ({"images": ["?"], "masks": ["?"], "captions": [""]}, "images[0]: not base64"),
        ({"images": ["AAAA"], "masks": ["AAAA"], "captions": [""]}, "images[0]: not an image"),
        ({"extra": 1}, "extra"),
        ({"images": ["AAAA"] * (MAX_IMAGES + 1)}, "images"),
    ],
)
def test_the_reference_server_says_what_is_wrong_with_a_request(
    served: tuple[str, Path], change: dict, message: str
) -> None:
    body = encode_request(*batch()).model_dump() | change
    response = requests.post(served[0], json=body, timeout=10)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]


def test_a_function_is_served_and_its_failure_reaches_the_client(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(images, masks, captions): return [1 / len(c) for c in captions]\n")
    process, url = start_server("mine:f", "--kind", "function", cwd=tmp_path)
    try:
        assert ask(url).tolist() == pytest.approx([1 / 3] * 3)
        request = encode_request(*batch()[:2], ["a", "", "b"]).model_dump()
        response = requests.post(url, json=request, timeout=10)
        assert response.status_code == 500
        assert "mine:f raised ZeroDivisionError" in response.json()["error"]["message"]
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["nowhere", "not a complete reward folder"]),
        (["mine:f", "--kind", "function"], ["'mine'", "does not import"]),
        (["mine", "--kind", "function"], ["function"]),
        (["--kind", "glamour"], ["kind"]),
        (["x", "--kind", "seam"], ["'path' means nothing to kind 'seam'"]),
        (["--kind", "seam", "--host", "256.0.0.1"], ["cannot be listened on"]),
    ],
)
def test_a_server_that_cannot_start_says_why_with_exit_code_2(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    command = [sys.executable, "-m", "rlhf", "reward-server", *arguments]
    command += [] if "--port" in arguments else ["--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
