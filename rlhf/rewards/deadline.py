"""A deadline for code of others: a user's function, or a server that answers byte by byte."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


class LateError(Exception):
    """A call has not ended in time."""


def call_within(timeout_s: float, call: Callable[[], T]) -> T:
    """Returns what `call` returns, run in a thread of its own. Raises what it raises, SystemExit included.

    Raises LateError after `timeout_s`; the thread is then left behind, since nothing can end it, and does not keep the
    process alive.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        # Whatever it is, the caller's thread has to hear of it.
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True, name="rlhf-deadline").start()
    try:
        error = outcome.exception(timeout_s)
    except TimeoutError as late:
        raise LateError from late
    if error is not None:
        raise error
    return outcome.result()
