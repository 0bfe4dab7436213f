"""Decodes pictures with limits of time and memory, so that no file holds a command or a service up. Imports no torch.

Decoders cannot be interrupted, so whatever may be costly is decoded in forks of another process.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rlhf.errors import UserError
from rlhf.storage.decoding import MAX_PIXELS, Header, decode_layers, put_on_white, read_file, read_header
from rlhf.storage.decoding_process import NUMBER_BYTES, receive, receive_into, send

CHEAP_BYTES, CHEAP_PX = 1_000_000, 1_500_000
"""Longest file, and most pixels, that `decode_image` decodes itself: it takes a second at worst."""


class SlowPictureError(UserError):
    """Decoding takes more processor time, or ends its process."""


class NoProcessError(UserError):
    """The process that forks has died; the next picture starts another."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What decoding a picture may cost."""

    max_pixels: int = MAX_PIXELS
    header_cpu_s: float = 0.2
    """Processor time for the head of a file, in seconds, and as much more per million bytes of the file:"""
    header_cpu_s_per_megabyte: float = 0.02
    cpu_s: float = 1.0
    """Processor time for the pixels, and as much more per million of them:"""
    cpu_s_per_megapixel: float = 0.25
    """The slowest format takes a fifth of it."""
    header_memory_bytes_per_pixel: int = 10
    """Memory for the head, beyond the file, for each of `max_pixels`: Pillow makes room for a WebP's pixels then."""
    memory_bytes: int = 80_000_000
    """Memory for the pixels, and as much more for each:"""
    memory_bytes_per_pixel: int = 16
    politeness: int = 0
    """How much the priority of decoding is lowered."""


LIMITS = Limits()


class DecodingProcess:
    """The process that forks for each picture, and what it is asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Number of the process that forks; None before it starts."""
        return None if self._process is None else self._process.pid

    def ask_header(self, data: bytes, name: str, limits: Limits = LIMITS) -> "Conversation":
        """Returns the question for the head of a file."""
        cpu_s = limits.header_cpu_s + limits.header_cpu_s_per_megabyte * len(data) / 1e6
        memory_bytes = limits.header_memory_bytes_per_pixel * limits.max_pixels
        task = {"is_header_only": True, "cpu_s": cpu_s, "memory_bytes": memory_bytes + len(data)}
        return self._ask(task, data, name, limits)

    def ask_pixels(self, data: bytes, name: str, header: Header, limits: Limits = LIMITS) -> "Conversation":
        """Returns the question for the pixels of a file."""
        cpu_s = limits.cpu_s + limits.cpu_s_per_megapixel * header.pixels / 1e6
        memory_bytes = limits.memory_bytes + limits.memory_bytes_per_pixel * header.pixels
        task = {"is_header_only": False, "cpu_s": cpu_s, "memory_bytes": memory_bytes + len(data)}
        return self._ask(task, data, name, limits)

    def _ask(self, task: dict[str, Any], data: bytes, name: str, limits: Limits) -> "Conversation":
        task |= {"name": name, "file_bytes": len(data)}
        task |= {"max_pixels": limits.max_pixels, "politeness": limits.politeness}
        return Conversation(self, task, data)

    def fork(self, connection: socket.socket) -> None:
        """Has a fork made that talks over this connection. Raises OSError if the process that forks has died."""
        self.start()
        assert self._control is not None
        socket.send_fds(self._control, [b"."], [connection.fileno()])

    def start(self) -> None:
        """Starts the process that forks, unless it runs; the first picture does it too."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._control, theirs = socket.socketpair()
                with theirs:
                    # Ray sets the path of modules in the process alone.
                    paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), *sys.path]))
                    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
                    module = "rlhf.storage.decoding_process"
                    self._process = subprocess.Popen(
                        [sys.executable, "-W", "ignore", "-m", module, str(theirs.fileno())],
                        pass_fds=[theirs.fileno()],
                        stdin=subprocess.DEVNULL,
                        env=os.environ | one_thread | {"PYTHONPATH": paths},
                    )

    def close(self) -> None:
        """Ends the process that forks."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.wait()
        self._process = self._control = None


class Conversation:
    """One question and its answer: the exchange with one fork."""

    def __init__(self, process: DecodingProcess, task: dict[str, Any], data: bytes) -> None:
        self._process = process
        self._task, self._data = task, data
        self._connection, self._theirs = socket.socketpair()
        self._number: int | None = None
        self._reply: dict[str, Any] = {}
        self._pixels = np.empty(0, np.uint8)

    def hold(self) -> "Conversation":
        """Asks, and waits for the answer.

        Raises UserError if the file is refused, SlowPictureError if the fork ends without an answer, and
        NoProcessError if no fork was made.
        """
        with self._connection:
            try:
                with self._theirs:
                    self._process.fork(self._theirs)
                self._number = int.from_bytes(receive(self._connection, NUMBER_BYTES))
            except OSError as error:
                raise NoProcessError(f"{self._task['name']}: cannot be decoded now; try again") from error
            try:
                self._exchange()
            except ConnectionError as error:
                raise self._too_costly() from error
        if self._reply["refusal"] is not None:
            raise UserError(self._reply["refusal"])
        return self

    def header(self) -> Header:
        """Returns the answer to a question for the head."""
        return Header(**self._reply["header"])

    def pixels(self) -> np.ndarray:
        """Returns the answer to a question for the pixels: uint8 [H, W, 3 or 4]."""
        return self._pixels

    def end(self) -> None:
        """Ends the fork and the exchange, from another thread than the one that waits."""
        if self._number is not None:
            with suppress(ProcessLookupError):
                os.kill(self._number, signal.SIGKILL)
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _exchange(self) -> None:
        send(self._connection, self._task, self._data)
        size = int.from_bytes(receive(self._connection, NUMBER_BYTES))
        self._reply = json.loads(receive(self._connection, size))
        if self._reply["shape"] is not None:
            self._pixels = np.empty(math.prod(self._reply["shape"]), np.uint8)
            receive_into(self._connection, self._pixels.data)
            self._pixels = self._pixels.reshape(self._reply["shape"])

    def _too_costly(self) -> SlowPictureError:
        limits = f"{self._task['cpu_s']:.1f} s of processor time and {self._task['memory_bytes'] / 1e6:.0f} MB"
        return SlowPictureError(
            f"{self._task['name']}: decoding takes more than {limits}; save it again as a usual JPEG or PNG"
        )


PROCESS = DecodingProcess()
"""Decodes for `decode_image`; it runs from the first costly picture on, and ends with this process."""


def decode_image(source: bytes | Path, *, name: str | None = None, is_apart: bool = False) -> Image.Image:
    """Decodes a photograph to upright 8-bit RGB, transparency on white.

    `is_apart` decodes in another process even what is cheap, as pictures of strangers are to be. Raises UserError,
    naming the file, as `decode_layers` does, and if decoding takes too much time or memory.
    """
    label = name or (str(source) if isinstance(source, Path) else "image")
    data = source if isinstance(source, bytes) else read_file(source, label)
    if not is_apart and _is_cheap(data, label):
        layers = decode_layers(data, name=label)
    else:
        header = PROCESS.ask_header(data, label).hold().header()
        layers = PROCESS.ask_pixels(data, label, header).hold().pixels()
    return Image.fromarray(put_on_white(layers))


def _is_cheap(data: bytes, name: str) -> bool:
    return len(data) <= CHEAP_BYTES and read_header(data, name=name).passes_px <= CHEAP_PX
