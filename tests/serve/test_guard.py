"""The guard in front of the edit service, the annotation page and the reward server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException

from serve.api.api_errors import ApiError, answer_api_error, answer_http_error
from serve.api.guard import MAX_NESTING, Guard, JsonBounds, Rules, is_loopback

HOST = "127.0.0.1:8000"
RULES = Rules(body_bytes=10_000, json_items=50)


def build(rules: Rules) -> FastAPI:
    """An application that needs a key, and answers the length of the body."""
    app = FastAPI()
    app.exception_handler(ApiError)(answer_api_error)
    app.exception_handler(HTTPException)(answer_http_error)

    @app.api_route("/", methods=["GET", "POST"])
    async def read(http: Request) -> int:
        if "authorization" not in http.headers:
            raise ApiError("no key", status=401)
        return len(await http.body())

    app.add_middleware(Guard, rules=rules)
    return app


def ask(
    headers: list[tuple[str, str]] | dict[str, str] | None = None,
    rules: Rules = RULES,
    method: str = "POST",
    client: str = "127.0.0.1",
    content: Any = b"",
    key: bool = True,
) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(build(rules), client=(client, 1234))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as opened:
            given = list(headers.items()) if isinstance(headers, dict) else headers or []
            given += [("authorization", "Bearer x")] if key else []
            return await opened.request(method, "/", headers=given, content=content)

    return asyncio.run(send())


MALFORMED = [
    {"origin": "http://[::1"},
    {"origin": "http://[::1]:99999"},
    {"origin": "http://"},
    {"origin": "nonsense"},
    {"origin": "http://a b"},
    {"host": "[::1"},
    {"host": "a:b"},
    {"host": "127.0.0.1:8000, other"},
    {"host": "user@127.0.0.1"},
    {"host": "127.0.0.1:8000/path"},
    {"host": ""},
]


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("headers", MALFORMED, ids=str)
def test_malformed_headers_are_400_before_and_after_the_key_alike(headers: dict[str, str], key: bool) -> None:
    answer = ask(headers, key=key)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "malformed_header"


def test_a_header_that_comes_twice_is_400() -> None:
    assert ask([("origin", f"http://{HOST}"), ("origin", "http://other.example")]).status_code == 400
    assert ask([("host", HOST), ("host", "other.example")]).status_code == 400


FOREIGN = [
    {"origin": "https://elsewhere.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://127.0.0.1:8001"},
    {"origin": "http://127.0.0.1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_requests_from_pages_of_other_sites_are_refused(headers: dict[str, str], method: str) -> None:
    answer = ask(headers, method=method)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_origin")


OWN = [
    ({}, "POST"),
    ({"origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}, "POST"),
    ({"origin": "HTTP://Example.com", "host": "example.com:80"}, "POST"),
    ({"origin": "https://example.com", "host": "example.com"}, "POST"),
    ({"origin": "http://[::1]:8000", "host": "[0:0::1]:8000"}, "POST"),
    ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, "GET"),
    ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, "GET"),
]


@pytest.mark.parametrize(("headers", "method"), OWN, ids=str)
def test_own_pages_programs_and_links_are_answered(headers: dict[str, str], method: str) -> None:
    assert ask(headers, method=method).status_code == 200


def test_a_server_without_pages_answers_no_page_at_all() -> None:
    rules = Rules(body_bytes=10_000, json_items=50, has_pages=False)
    assert ask({"origin": f"http://{HOST}"}, rules).status_code == 403
    assert ask({"origin": "http://[::1"}, rules).status_code == 400
    assert ask({}, rules).status_code == 200


OWN_MACHINE = Rules(body_bytes=10_000, json_items=50, is_own_machine_only=True)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"])
def test_this_machine_is_answered_under_its_own_names(host: str) -> None:
    assert ask({"host": host}, OWN_MACHINE).status_code == 200


def test_a_name_that_another_site_resolves_to_this_machine_is_refused() -> None:
    for host in ("rebound.example:8000", "192.0.2.7", "127.0.0.1.rebound.example"):
        answer = ask({"host": host, "origin": f"http://{host}"}, OWN_MACHINE)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "other_machine")
    assert ask({}, OWN_MACHINE, client="192.0.2.7").status_code == 403
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "localhost"))


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


async def in_pieces(data: bytes, size: int = 7) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


JSON_TOO_LARGE = {
    "many elements": b"[" + b"1," * 60 + b"1]",
    "many fields": b"{" + b",".join(b'"%d":1' % i for i in range(60)) + b"}",
    "many empty objects": b"[" + b"{}" * 60,
    "deep": nested(MAX_NESTING + 1),
    "deep in objects": b'{"a":' * (MAX_NESTING + 1),
    "after a text with quotes": rb'["a\"b\\",' + b"1," * 60 + b"1]",
}


@pytest.mark.parametrize("name", JSON_TOO_LARGE)
def test_a_json_body_with_too_many_fields_or_levels_is_400(name: str) -> None:
    for content in (JSON_TOO_LARGE[name], in_pieces(JSON_TOO_LARGE[name])):
        answer = ask({"content-type": "application/json"}, content=content)
        assert answer.status_code == 400, answer.text
        assert "fields" in answer.json()["error"]["message"]


def test_commas_and_brackets_in_texts_are_no_fields() -> None:
    text = rb'{"prompt": "' + rb"[{,\"\\ " * 200 + rb'"}'
    for content in (text, in_pieces(text, 1), nested(MAX_NESTING)):
        assert ask({"content-type": "application/json"}, content=content).status_code == 200


def test_escapes_are_bounded() -> None:
    bounds = JsonBounds(50)
    for _ in range(100):
        bounds.feed(b'"' + rb"\n" * 15_000 + b'"')
    with pytest.raises(HTTPException, match="escapes"):
        bounds.feed(b'"' + rb"\n" * 1_000_000 + b'"')


def test_bodies_beyond_the_limit_are_413_whatever_they_declare() -> None:
    assert ask(content=b"x" * 10_000).status_code == 200
    assert ask(content=b"x" * 10_001).status_code == 413
    assert ask(content=in_pieces(b"x" * 10_001, 500)).status_code == 413
    assert ask({"content-length": "1" * 5000}).status_code == 413
    assert ask({"content-length": "-5"}).status_code == 400
