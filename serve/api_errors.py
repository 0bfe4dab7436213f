"""Refusals in the form of OpenAI's API: {"error": {"message", "type", "param", "code"}}."""

import math

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RETRY_AFTER_S = 2.0
"""What a 429 asks for that knows no better."""


class ApiError(Exception):
    """A request that cannot be answered, and what its sender can do about it."""

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
        """The field of the form that is at fault."""
        self.code = code
        """A word for programs, such as `image_too_large`."""
        self.status = status
        """HTTP status."""
        self.retry_after_s = retry_after_s
        """When the request may come again; the reply rounds it up to whole seconds."""


class BodyLimit:
    """Middleware that stops reading a request at `limit_bytes`, whatever length it declares."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self.app = app
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; beyond the limit the route sees an HTTPException 413 in place of more bytes."""
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit_bytes:
                raise HTTPException(413, f"the request is longer than {self.limit_bytes / 1e6:.0f} MB")
            return message

        await self.app(scope, receive_within_limit, send)


def answer_api_error(request: Request, error: ApiError) -> JSONResponse:
    """The reply to an ApiError."""
    return _reply(str(error), error.param, error.code, error.status, error.retry_after_s)


def answer_invalid_form(request: Request, error: RequestValidationError) -> JSONResponse:
    """The reply to a form that lacks a field, or holds a value of another kind or range."""
    first = error.errors()[0]
    names = [part for part in first["loc"] if isinstance(part, str) and part != "body"]
    field = names[-1] if names else None
    return _reply(
        f"{field or 'the request'}: {first['msg'].removeprefix('Value error, ')}", field, "invalid_value", 400
    )


def answer_http_error(request: Request, error: HTTPException) -> JSONResponse:
    """The reply to an unknown path or method, a body that is no form, or one that is too long."""
    return _reply(str(error.detail), None, None, error.status_code)


def answer_failure(request: Request, error: Exception) -> JSONResponse:
    """The reply where the server is at fault; the traceback is in the log of the replica."""
    return _reply("the server failed; see the log of the replica", None, None, 500)


def _reply(
    message: str, param: str | None, code: str | None, status: int, retry_after_s: float | None = None
) -> JSONResponse:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if status == 429 or retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(RETRY_AFTER_S if retry_after_s is None else retry_after_s)))
    return JSONResponse(body, status_code=status, headers=headers)
