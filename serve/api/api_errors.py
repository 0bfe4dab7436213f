"""Refusals in the form of OpenAI's API: {"error": {"message", "type", "param", "code"}}."""

import logging
import math

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rlhf.errors import UserError

logger = logging.getLogger("ray.serve")
RETRY_AFTER_S = 2.0
"""Seconds in `retry-after` of a 429 without a time of its own."""


class ApiError(Exception):
    """A refused request; the message says why, and what its sender can do."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        """Name of the field at fault."""
        self.code = code
        """Word for programs, such as `image_too_large`."""
        self.status = status
        """HTTP status."""
        self.retry_after_s = retry_after_s
        """Seconds after which the request may come again; the reply rounds them up."""

    def record(self) -> dict[str, str | None]:
        """Returns the error object of the reply's JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"message": str(self), "type": kind, "param": self.param, "code": self.code}


def answer_api_error(request: Request, error: ApiError) -> JSONResponse:
    """Replies to an ApiError."""
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    if error.status == 429 or error.retry_after_s is not None:
        seconds = RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
    if error.status == 408:
        headers["connection"] = "close"
    return JSONResponse({"error": error.record()}, status_code=error.status, headers=headers)


def answer_invalid_form(request: Request, error: RequestValidationError) -> JSONResponse:
    """Replies to a form that lacks a field, or holds a value of the wrong type or range."""
    first = error.errors()[0]
    names = [part for part in first["loc"] if isinstance(part, str) and part != "body"]
    field = names[-1] if names else None
    message = f"{field or 'the request'}: {first['msg'].removeprefix('Value error, ')}"
    return answer_api_error(request, ApiError(message, param=field, code="invalid_value"))


def answer_http_error(request: Request, error: HTTPException) -> JSONResponse:
    """Replies to an unknown path or method, or to a body that is no form or too long."""
    return answer_api_error(request, ApiError(str(error.detail), status=error.status_code))


def answer_user_error(request: Request, error: UserError) -> JSONResponse:
    """Replies 503 to a failure that the operator must mend, such as a missing policy or a full disk."""
    return answer_api_error(request, to_api_error(error))


def to_api_error(error: UserError) -> ApiError:
    """Logs the error, and returns one for the client that names no folder of the server."""
    logger.error("%s", error)
    return ApiError("the service cannot do this at present; its log says why", code="unavailable", status=503)


def answer_failure(request: Request, error: Exception) -> JSONResponse:
    """Replies 500 to an unexpected failure; the traceback is in the log of the replica."""
    return answer_api_error(request, ApiError("the server failed; see the log of the replica", status=500))
