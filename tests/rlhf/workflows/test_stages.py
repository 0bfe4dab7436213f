"""Commands of stages: they end with whoever runs them."""

import os
import signal
import subprocess
import sys
import time

import psutil

PARENT = """
import os, sys
from rlhf.workflows.stages import run_command
run_command([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"], dict(os.environ))
"""


def test_a_stages_command_dies_with_whoever_ran_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
