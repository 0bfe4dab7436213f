"""A run that gets a signal saves its work and ends: so do clusters announce that a process must go."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rlhf.alignment.run_folder import ask_to_end, withdraw_request

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""SIGTERM comes from Kubernetes, systemd and `kill`, SIGUSR1 by custom from batch systems before the time limit."""


@contextmanager
def ending_on_signal(run: Path) -> Iterator[None]:
    """Has a signal ask the run in the folder `run` to end after the update in work, during the `with`.

    A second signal acts as it would without the `with`. Signals reach the main thread alone; in another one nothing
    changes.
    """
    withdraw_request(run)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _: FrameType | None) -> None:
        restore()
        name = signal.Signals(number).name
        print(f"align: {name}: ends with a checkpoint after this update; {name} again ends it now", file=sys.stderr)
        ask_to_end(run)

    before = {number: signal.signal(number, ask) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield
    finally:
        restore()
        withdraw_request(run)
