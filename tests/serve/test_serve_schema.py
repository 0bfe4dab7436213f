"""Requests that schemathesis draws from the OpenAPI document, against a running service: none ends with a 5xx."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_service import IMAGE, MASK, running_service, save_models

pytestmark = pytest.mark.ray
FEW_FIT = ("model", "policy_version", "size", "expand")
"""Fields for which few drawn values are accepted."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_service(save_models(tmp_path_factory.mktemp("served"))) as started:
        yield started


def ask_all(address: str, cases: int) -> dict[int, int]:
    """Statuses of at least `cases` requests, most of them edits, half of those with real pictures."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    statuses: dict[int, int] = {}
    edits = [operation for operation in operations if operation.path == "/v1/images/edits"]
    for operation in [*operations, *edits * len(operations)]:
        options = {"max_examples": cases // (2 * len(operations)) + 1, "deadline": None, "database": None}
        phases = {"phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}

        @settings(**options, **phases)
        @given(case=operation.as_strategy(), is_real=st.booleans())
        def ask(case: schemathesis.Case, is_real: bool) -> None:
            if is_real and isinstance(case.body, dict) and case.media_type == "multipart/form-data":
                kept = {name: value for name, value in case.body.items() if name not in FEW_FIT}
                case.body = kept | {"image": IMAGE, "mask": MASK, "num_inference_steps": 1}
            status = case.call(timeout=60).status_code
            statuses[status] = statuses.get(status, 0) + 1

        ask()
    while sum(statuses.values()) < cases:  # operations without parameters are soon exhausted
        ask()
    return statuses


def test_requests_by_the_document_never_end_with_a_server_error(address: str):
    statuses = ask_all(address, 150)
    assert max(statuses) < 500, statuses
    assert {200, 400} <= statuses.keys()


@pytest.mark.slow
def test_two_thousand_requests_by_the_document_never_end_with_a_server_error(address: str):
    statuses = ask_all(address, 2000)
    print(statuses)
    assert sum(statuses.values()) >= 2000
    assert max(statuses) < 500, statuses
