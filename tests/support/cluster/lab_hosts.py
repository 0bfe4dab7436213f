"""Machines out of one host, reached by ssh, for tests of launchers: tests/lab does the work, as root."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

LAB = Path(__file__).parents[2] / "lab"
ROOT = LAB.parents[1]
PACKAGES = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync"}
"""Debian packages of the programs that the machines need."""
ACTIVATE = "cd /shared/prefpaint-ray && source .venv/bin/activate && export RAY_AUTH_MODE=token && "


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Machines 1 to `count` with the addresses 192.0.2.11, .12 and so on, and one folder /shared."""

    folder: Path
    """Folder of this host that holds what the machines keep; `shared` in it is their /shared."""
    count: int

    @property
    def shared(self) -> Path:
        """The machines' folder /shared, on this host."""
        return self.folder / "shared"

    def script(self, name: str, *words: object) -> None:
        """Runs a script of tests/lab; raises with its output if it fails."""
        done = subprocess.run(self._command(name, *words), env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{name} {words}: {done.stdout}{done.stderr}"

    def start(self, number: int, command: str, log: Path) -> subprocess.Popen:
        """Starts a command on a machine, as its user; its output goes to `log`, on this host."""
        words = self._command("ssh_hosts.sh", "do", number, command)
        with log.open("a") as output:
            return subprocess.Popen(
                words, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def run(self, number: int, command: str, timeout_s: float = 300, code: int | None = 0) -> str:
        """Returns what a command on a machine prints; asserts its exit code, unless that is None."""
        log = self.folder / f"{time.monotonic_ns()}.log"
        process = self.start(number, command, log)
        found = process.wait(timeout_s)
        assert code is None or found == code, f"{command}: exit code {found}\n{log.read_text()}"
        return log.read_text()

    def prepare(self, *numbers: int) -> None:
        """Gives machines their address, sshd, user and /shared; also after a machine was switched on again."""
        self.script("ssh_hosts.sh", "up", " ".join(map(str, numbers)), ROOT, sys.prefix)

    def _command(self, name: str, *words: object) -> list[str]:
        return [str(LAB / name), *map(str, words)]

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {"LAB": str(self.folder)}


@contextmanager
def run_hosts(count: int, folder: Path, more: Mapping[str, str] | None = None) -> Iterator[Hosts]:
    """Gives `count` machines for the time of the `with`; `more` are packages by program, as in PACKAGES.

    Skips the test where the machines cannot be made.
    """
    if os.geteuid() != 0:
        pytest.skip("only root makes machines out of one host")
    missing = [package for name, package in (PACKAGES | dict(more or {})).items() if shutil.which(name) is None]
    if missing:
        pytest.skip(f"machines out of one host need {', '.join(missing)}: apt-get install them")
    hosts = Hosts(folder=folder, count=count)
    try:
        hosts.script("machines.sh", "up", count)
        hosts.prepare(*range(1, count + 1))
        yield hosts
    finally:
        hosts.script("machines.sh", "down")
        hosts.script("ssh_hosts.sh", "down")
