"""API keys: who may ask, how often, and what the error for a damaged file reveals."""

import hashlib
import json
import logging
import math
import os
from pathlib import Path

import pytest
from fastapi import Request
from small_study import Clock
from typer.testing import CliRunner

from rlhf.commands.cli import app
from rlhf.errors import UserError
from serve.api.api_errors import ApiError, answer_api_error
from serve.api.api_keys import VARIABLE, ApiKeys, load_api_keys, new_key, parse_keys

HASH = hashlib.sha256(b"pp-one").hexdigest()
OTHER = hashlib.sha256(b"pp-two").hexdigest()
NOBODY = Request({"type": "http", "headers": []})


def keys_of(*lines: str) -> ApiKeys:
    return ApiKeys(parse_keys("\n".join(lines), "keys"))


def refusal(keys: ApiKeys, header: str | None, now: float = 0.0) -> ApiError:
    with pytest.raises(ApiError) as caught:
        keys.authorize(header, now)
    return caught.value


def test_a_new_key_lets_its_name_in_and_no_other_does() -> None:
    key, line = new_key("alice")
    keys = keys_of("# who may ask", "", line, f"bob:{OTHER.upper()}")
    assert keys.authorize(f"Bearer {key}", 0.0) == "alice"
    assert keys.authorize("bearer  pp-two ", 0.0) == "bob"
    assert key.startswith("pp-")
    assert len(key) >= 40
    assert key not in line
    assert new_key("alice")[0] != key


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer pp-on", "Bearer pp-one2", "Basic pp-one", "pp-one", "Bearer ÿ"]
)
def test_whoever_has_no_key_gets_401_in_openais_form(header: str | None) -> None:
    reply = answer_api_error(NOBODY, refusal(keys_of(f"alice:{HASH}"), header))
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
    error = json.loads(reply.body)["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert "pp-on" not in error["message"]


def test_a_key_has_its_burst_then_its_rate_and_says_when_to_come_again() -> None:
    keys, clock = keys_of(f"alice:{HASH}:6"), Clock()
    for _ in range(6):
        keys.authorize("Bearer pp-one", clock())
    error = refusal(keys, "Bearer pp-one", clock())
    assert (error.status, error.code, error.retry_after_s) == (429, "rate_limit_exceeded", pytest.approx(10.0))
    clock.now += 7.5
    error = refusal(keys, "Bearer pp-one", clock())
    assert answer_api_error(NOBODY, error).headers["retry-after"] == "3", "2.5 s, rounded up"
    clock.now += math.ceil(error.retry_after_s or 0)
    assert keys.authorize("Bearer pp-one", clock()) == "alice"
    refusal(keys, "Bearer pp-one", clock())
    clock.now += 3600
    for _ in range(6):
        keys.authorize("Bearer pp-one", clock())
    refusal(keys, "Bearer pp-one", clock())


def test_whoever_waits_as_long_as_told_is_let_in() -> None:
    for rate in (1, 7, 13, 60, 999):
        keys, now = keys_of(f"alice:{HASH}:{rate}"), 0.1
        for _ in range(rate):
            keys.authorize("Bearer pp-one", now)
        for _ in range(50):
            now += refusal(keys, "Bearer pp-one", now).retry_after_s or 0
            assert keys.authorize("Bearer pp-one", now) == "alice"


def test_one_keys_requests_are_not_counted_to_another_and_a_clock_that_goes_back_gives_none() -> None:
    keys = keys_of(f"alice:{HASH}:1", f"bob:{OTHER}:1")
    assert [keys.authorize(f"Bearer {key}", 50.0) for key in ("pp-one", "pp-two")] == ["alice", "bob"]
    assert refusal(keys, "Bearer pp-one", 10.0).retry_after_s == pytest.approx(60.0)


def test_other_429s_keep_their_two_seconds_and_other_replies_have_no_such_header() -> None:
    full = ApiError("full", status=429)
    assert answer_api_error(NOBODY, full).headers["retry-after"] == "2"
    headers = answer_api_error(NOBODY, ApiError("wrong")).headers
    assert not {"retry-after", "www-authenticate"} & set(headers)


SECRET = "pp-a-key-put-there-by-mistake"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key, so that nobody could ask"),
        ("# none\n\n", "holds no key"),
        (SECRET, "line 1: must be NAME"),
        (f"\nalice:{SECRET}", "line 2: the second field is no SHA-256"),
        (f"alice:{HASH[:-1]}", "line 1: the second field is no SHA-256"),
        (f"alice:{HASH[:-1]}g", "no SHA-256"),
        (f"a b:{HASH}", "line 1: the name takes letters"),
        (f":{HASH}", "the name takes letters"),
        (f"alice:{HASH}:0", "line 1: requests per minute"),
        (f"alice:{HASH}:-5", "requests per minute"),
        (f"alice:{HASH}:1.5", "requests per minute"),
        (f"alice:{HASH}:5:6", "must be NAME"),
        (f"alice:{HASH}\n#\nalice:{OTHER}", "line 3: the name of line 1 again"),
        (f"alice:{HASH}\nbob:{HASH.upper()}", "line 2: the key of line 1 again"),
        (f"{SECRET}:{HASH}\n{SECRET}:{OTHER}", "line 2: the name of line 1 again"),
    ],
)
def test_a_damaged_line_is_named_and_never_shown(text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^keys: .*{said}") as caught:
        parse_keys(text, "keys")
    assert SECRET not in str(caught.value)


def test_keys_come_from_the_file_else_from_the_environment_else_nobody_needs_one(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text(f"alice:{HASH}\n")
    environment = {VARIABLE: f"bob:{OTHER}:5,carol:{HASH}\n# comment"}
    assert [key.name for key in load_api_keys(tmp_path / "keys.txt", environment).keys] == ["alice"]
    assert [(key.name, key.per_minute) for key in load_api_keys(None, environment).keys] == [("bob", 5), ("carol", 60)]
    assert load_api_keys(None, {}) is None
    with pytest.raises(UserError, match=f"{VARIABLE}: holds no key"):
        load_api_keys(None, {VARIABLE: ""})
    with pytest.raises(UserError, match="absent: cannot be read"):
        load_api_keys(tmp_path / "absent", {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="binary: cannot be read"):
        load_api_keys(tmp_path / "binary", {})


def rewrite(file: Path, text: str, mtime: int) -> None:
    file.write_text(text)
    os.utime(file, (mtime, mtime))


def test_a_changed_file_is_taken_in_and_counts_of_unchanged_lines_go_on(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    rewrite(file, f"alice:{HASH}:1\n", 1)
    keys = load_api_keys(file, {})
    keys.authorize("Bearer pp-one", 0.0)
    assert not keys.reload_if_changed()
    rewrite(file, f"alice:{HASH}:1\nbob:{OTHER}:1\n", 2)
    assert keys.reload_if_changed()
    assert keys.authorize("Bearer pp-two", 0.0) == "bob"
    assert refusal(keys, "Bearer pp-one", 0.0).status == 429
    rewrite(file, f"bob:{OTHER}:1\n", 3)
    assert keys.reload_if_changed()
    assert refusal(keys, "Bearer pp-one", 0.0).status == 401


def test_a_damaged_or_lost_file_keeps_the_keys_and_the_log_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.txt"
    rewrite(file, f"alice:{HASH}\n", 1)
    keys = load_api_keys(file, {})
    for change, said in ((lambda: rewrite(file, f"alice:{SECRET}", 2), "line 1: the second"), (file.unlink, "read")):
        caplog.clear()
        change()
        with caplog.at_level(logging.WARNING):
            assert not keys.reload_if_changed()
            assert not keys.reload_if_changed()
        (record,) = caplog.records
        assert said in record.getMessage()
        assert "1 keys read before stay in force" in record.getMessage()
        assert SECRET not in caplog.text
    assert keys.authorize("Bearer pp-one", 0.0) == "alice"


def test_no_key_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    keys = keys_of(f"alice:{HASH}:1")
    with caplog.at_level(logging.DEBUG):
        keys.authorize("Bearer pp-one", 0.0)
        said = [str(refusal(keys, header)) for header in ("Bearer pp-one", "Bearer pp-three")]
    assert not [text for text in (*said, caplog.text) if "pp-one" in text or "pp-three" in text]


def test_the_command_prints_a_key_once_and_the_line_that_knows_it() -> None:
    done = CliRunner().invoke(app, ["api-key", "alice", "--per-minute", "5"])
    key, line = done.stderr.splitlines()[1], done.stdout.strip()
    assert keys_of(line).authorize(f"Bearer {key}", 0.0) == "alice"
    assert line == f"alice:{hashlib.sha256(key.encode()).hexdigest()}:5"
    bad = CliRunner().invoke(app, ["api-key", "a:b"])
    assert isinstance(bad.exception, UserError)
    assert "'a:b' takes letters" in str(bad.exception)
