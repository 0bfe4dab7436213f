"""The fields of a request, without a server."""

import pytest

from serve.api.api_errors import ApiError
from serve.api.edit_request import EditRequest


def test_answers_are_as_large_as_the_photograph_or_of_its_shape() -> None:
    assert EditRequest().answer_size(30, 20) == (30, 20)
    assert EditRequest(size="60x40").answer_size(30, 20) == (60, 40)
    assert EditRequest(size="1024x683").answer_size(1536, 1024) == (1024, 683), "whole pixels"
    with pytest.raises(ApiError, match="another shape"):
        EditRequest(size="60x60").answer_size(30, 20)


@pytest.mark.parametrize(("output_format", "longest"), [("webp", 16383), ("jpeg", 65535)])
def test_a_format_that_cannot_hold_the_answer_is_refused_before_it_is_painted(output_format: str, longest: int) -> None:
    request = EditRequest(output_format=output_format)  # type: ignore[arg-type]
    assert request.answer_size(longest, 5) == (longest, 5)
    with pytest.raises(ApiError, match=f"holds {longest} pixels a side"):
        request.answer_size(5, longest + 1)


@pytest.mark.parametrize("expand", ["1,2,3", "1,2,3,4,5", "a,b,c,d", "0,0,-1,0", [1, 2], 7])
def test_an_extension_needs_four_numbers(expand: object) -> None:
    with pytest.raises(ValueError, match="expand"):
        EditRequest.model_validate({"expand": expand})
