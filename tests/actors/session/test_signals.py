"""A signal asks a run to end; another one, or one at another time, acts as ever."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from actors.session.signals import SIGNALS, ending_on_signal
from rlhf.alignment.run_folder import ask_to_end, is_asked_to_end
from rlhf.errors import RunInterruptedError


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_the_run_to_end_and_the_second_acts_as_before(number: int, tmp_path: Path) -> None:
    received: list[int] = []
    before = signal.signal(number, lambda number, _: received.append(number))
    try:
        ask_to_end(tmp_path)
        with ending_on_signal(tmp_path):
            assert not is_asked_to_end(tmp_path), "an earlier run was asked"
            os.kill(os.getpid(), number)
            assert is_asked_to_end(tmp_path)
            assert not received
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert received == [number, number]
    finally:
        signal.signal(number, before)


def test_in_another_thread_signals_stay_as_they_are(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    found: list[object] = []

    def enter() -> None:
        with ending_on_signal(tmp_path):
            found.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == before


def test_a_run_that_was_asked_to_end_exits_with_75_and_one_line() -> None:
    script = """
import rlhf.commands.cli as cli
from rlhf.errors import RunInterruptedError

def end():
    raise RunInterruptedError("3 of 9 updates are saved")

cli.app = end
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (RunInterruptedError.EXIT_CODE, "interrupted: 3 of 9 updates are saved\n")
