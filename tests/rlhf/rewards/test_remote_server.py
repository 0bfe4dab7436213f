"""`kind: http` and servers that mean ill: redirects, answers without end, bytes that drip."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from rlhf.errors import UserError
from rlhf.rewards.remote_server import RemoteServer, is_loopback

GOOD = b'{"rewards": [1.0, 2.0]}'


class Hostile(BaseHTTPRequestHandler):
    """Answers each path in its own way; a GET is only ever asked for by a followed redirect."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802
        self.server.reached.append(self.path)
        self.answer(200, GOOD)

    def do_POST(self) -> None:  # noqa: N802
        self.rfile.read(int(self.headers["content-length"]))
        kind, _, detail = self.path.strip("/").partition("/")
        if kind == "inner":
            self.server.reached.append(self.path)
        if kind == "redirect":
            self.answer(int(detail), b"", location="/inner")
        elif kind == "drip":
            self.drip(detail)
        elif kind == "endless":
            self.begin("transfer-encoding", "chunked")
            self.pour(f"{2**16:x}\r\n".encode() + b" " * 2**16 + b"\r\n")
        else:
            self.answer(200, GOOD)

    def drip(self, detail: str) -> None:
        if detail == "headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        else:
            self.begin("content-length", "100000")
        self.pour(b" ", pause_s=0.05)

    def begin(self, name: str, value: str) -> None:
        self.send_response(200)
        self.send_header(name, value)
        self.end_headers()

    def pour(self, part: bytes, pause_s: float = 0.0) -> None:
        self.close_connection = True
        try:
            while not self.server.is_over.wait(pause_s):
                self.wfile.write(part)
                self.server.poured += len(part)
        except OSError:
            pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    found = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    found.is_over, found.reached, found.poured, found.daemon_threads = threading.Event(), [], 0, True
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.is_over.set()
    found.shutdown()
    found.server_close()


def ask(server: ThreadingHTTPServer, path: str, timeout_s: float = 20.0) -> list[float]:
    url = f"http://127.0.0.1:{server.server_port}/{path}"
    remote = RemoteServer(name="mine", url=url, timeout_s=timeout_s, retries=0, text=None)
    images, masks = torch.zeros(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
    return remote.score(images, masks, ["", ""]).reward.tolist()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_leads_nowhere(server: ThreadingHTTPServer, status: int) -> None:
    with pytest.raises(UserError, match=rf"reward mine: .*answered {status}, a redirect to /inner.*set `url`"):
        ask(server, f"redirect/{status}")
    assert server.reached == []


def test_an_answer_is_read_as_far_as_one_of_its_batch_can_go(server: ThreadingHTTPServer) -> None:
    with pytest.raises(UserError, match="reward mine: .*answered more than 65664 bytes for 2 images"):
        ask(server, "endless")
    # What was under way between both sockets comes on top.
    assert server.poured < 32e6


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_server_that_drips_is_given_up_after_the_timeout(server: ThreadingHTTPServer, part: str) -> None:
    with pytest.raises(UserError, match=r"reward mine: .*gave no whole answer within 0\.6 s.*\(1 tries\)"):
        ask(server, f"drip/{part}", timeout_s=0.6)


def test_no_proxy_stands_before_a_loopback_address(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert ask(server, "good") == [1.0, 2.0]


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("http://127.0.0.1:8100/v1/rewards", True),
        ("http://127.9.9.9/", True),
        ("http://[::1]:8100/", True),
        ("http://[::ffff:127.0.0.1]/", True),
        ("http://localhost./", True),
        ("http://reward.localhost/", True),
        ("http://10.0.0.1/", False),
        ("http://localhost.example.com/", False),
        ("http://[2001:db8::1]/", False),
    ],
)
def test_loopback_addresses_are_told_from_others(url: str, is_local: bool) -> None:
    assert is_loopback(url) == is_local
