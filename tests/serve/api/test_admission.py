"""Admission: who may ask, and how many requests at a time."""

import hashlib

import pytest
from fastapi import Request

from serve.api.admission import Admission
from serve.api.api_errors import ApiError
from serve.api.api_keys import ApiKeys, parse_keys

KEY = "pp-of-a-test"
KEYS = ApiKeys(parse_keys(f"alice:{hashlib.sha256(KEY.encode()).hexdigest()}:2", "test"))


def request(host: str = "127.0.0.1", **headers: str) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw, "client": (host, 1234)})


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.8.8.8"])
def test_without_keys_this_machine_is_answered(host: str):
    assert Admission(None, 1).check(request(host)) == "local"


@pytest.mark.parametrize("host", ["192.0.2.7", "10.0.0.1", "::ffff:192.0.2.7", "fe80::1", "nonsense"])
def test_without_keys_no_other_machine_is_answered(host: str):
    with pytest.raises(ApiError) as refused:
        Admission(None, 1).check(request(host))
    assert (refused.value.status, refused.value.code) == (403, "no_api_keys")


def test_with_keys_every_machine_needs_one_and_its_rate_holds():
    admission = Admission(KEYS, 1)
    for headers in ({}, {"authorization": "Bearer pp-other"}):
        with pytest.raises(ApiError) as refused:
            admission.check(request(**headers))
        assert refused.value.status == 401
    bearer = {"authorization": f"Bearer {KEY}"}
    assert [admission.check(request("192.0.2.7", **bearer)) for _ in range(2)] == ["alice", "alice"]
    with pytest.raises(ApiError) as refused:
        admission.check(request(**bearer))
    assert refused.value.status == 429
    assert 0 < (refused.value.retry_after_s or 0) <= 30


def test_pixels_are_counted_and_given_back():
    admission = Admission(None, 9, max_megapixels=1)
    with admission.memory(900_000):
        with pytest.raises(ApiError, match="large photographs") as refused, admission.memory(200_000):
            pass
        assert refused.value.status == 429
    with admission.memory(1_000_000):
        pass
    with pytest.raises(ApiError, match="fewer images") as refused, admission.memory(1_000_001):
        pass
    assert refused.value.status == 413, "coming again would not help"


def test_places_are_counted_given_back_and_refused_with_a_time_to_come_again():
    admission = Admission(None, 2)
    with admission.place(), admission.place():
        with pytest.raises(ApiError) as refused, admission.place():
            pass
        assert (refused.value.status, refused.value.code) == (429, "overloaded")
    with pytest.raises(ZeroDivisionError), admission.place():
        1 / 0  # noqa: B018
    with admission.place(), admission.place():
        pass
