"""Refusals in the form of OpenAI's API: {"error": {"message", "type", "param", "code"}}."""

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ApiError(Exception):
    """A request that cannot be answered, and what its sender can do about it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        """The field of the form that is at fault."""
        self.code = code
        """A word for programs, such as `image_too_large`."""
        self.status = status
        """HTTP status."""


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
    return _reply(str(error), error.param, error.code, error.status)


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


def _reply(message: str, param: str | None, code: str | None, status: int) -> JSONResponse:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status_code=status, headers={"retry-after": "2"} if status == 429 else None)
