"""Decodes uploads in other processes, with limits of time and memory, while the service goes on."""

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.errors import UserError
from rlhf.storage.decoding import Header
from serve.api.api_errors import ApiError
from serve.api.decoding_process import NUMBER_BYTES, receive, receive_into, send

MAX_PICTURE_PX = 25_000_000
"""Most pixels of an uploaded picture, and of a photograph with the border that is added to it."""
SMALL_PX = 4_000_000
"""Most pixels of a picture that decodes beside others."""
SMALL_AT_ONCE = 2


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What decoding a picture may cost."""

    max_pixels: int = MAX_PICTURE_PX
    header_cpu_s: float = 0.5
    """Processor time for the head of a file, in seconds."""
    cpu_s: float = 1.0
    """Processor time for the pixels, and as much more per million of them:"""
    cpu_s_per_megapixel: float = 0.25
    """The slowest format takes a fifth of it."""
    header_memory_bytes: int = 10 * MAX_PICTURE_PX
    """Memory for the head, beyond the file itself: Pillow makes room for a WebP's pixels when it opens it."""
    memory_bytes: int = 80_000_000
    """Memory for the pixels, and as much more for each:"""
    memory_bytes_per_pixel: int = 16


LIMITS = Limits()


class Lane:
    """Lets a few in at once. Who came last goes first, so that a heap of slow files delays only its own sender."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Holds a place, and waits for it."""
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                elif not turn.cancelled():
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Decoder:
    """Has pictures decoded; whoever is cancelled ends the decoding at once."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self._small, self._large = Lane(SMALL_AT_ONCE), Lane(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock = threading.Lock()

    async def read_header(self, data: bytes, name: str) -> Header:
        """Reads the head of a file. Raises UserError, naming it, as `decode` does."""
        limits = self.limits
        task = self._task(data, name, limits.header_cpu_s, limits.header_memory_bytes) | {"is_header_only": True}
        async with self._small.place():
            conversation = await self._converse(task, data)
        return Header(**conversation.reply["header"])

    async def decode(self, data: bytes, name: str, header: Header) -> np.ndarray:
        """Decodes to upright uint8 [H, W, 3 or 4].

        Raises UserError if the file is refused by `rlhf.storage.decoding`, or takes too much time or memory.
        """
        cpu_s = self.limits.cpu_s + self.limits.cpu_s_per_megapixel * header.pixels / 1e6
        memory_bytes = self.limits.memory_bytes + self.limits.memory_bytes_per_pixel * header.pixels
        task = self._task(data, name, cpu_s, memory_bytes)
        lane = self._small if header.pixels * max(1, header.scans / 10) <= SMALL_PX else self._large
        async with lane.place():
            return (await self._converse(task, data)).pixels

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
                    self._process = subprocess.Popen(
                        [sys.executable, "-W", "ignore", "-m", "serve.api.decoding_process", str(theirs.fileno())],
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

    def _task(self, data: bytes, name: str, cpu_s: float, memory_bytes: int) -> dict[str, Any]:
        return {
            "name": name,
            "file_bytes": len(data),
            "is_header_only": False,
            "max_pixels": self.limits.max_pixels,
            "cpu_s": cpu_s,
            "memory_bytes": memory_bytes + len(data),
        }

    async def _converse(self, task: dict[str, Any], data: bytes) -> "Conversation":
        ours, theirs = socket.socketpair()
        with ours:
            conversation = Conversation(ours)
            talking = asyncio.create_task(asyncio.to_thread(self._talk, conversation, theirs, task, data))
            try:
                await asyncio.shield(talking)
            except asyncio.CancelledError:
                conversation.end()
                with suppress(OSError, UserError, ApiError):
                    await talking
                raise
        if conversation.reply["refusal"] is not None:
            raise UserError(conversation.reply["refusal"])
        return conversation

    def _talk(self, conversation: "Conversation", theirs: socket.socket, task: dict[str, Any], data: bytes) -> None:
        with theirs:
            self.start()
            assert self._control is not None
            try:
                socket.send_fds(self._control, [b"."], [theirs.fileno()])
            except OSError as error:
                raise _no_process() from error
        conversation.hold(task, data)


class Conversation:
    """The exchange with one fork."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._number: int | None = None
        self.reply: dict[str, Any] = {}
        self.pixels = np.empty(0, np.uint8)

    def hold(self, task: dict[str, Any], data: bytes) -> None:
        """Sends the file and receives the reply. Raises UserError if the fork ends without one."""
        try:
            self._number = int.from_bytes(receive(self._connection, NUMBER_BYTES))
        except ConnectionError as error:
            raise _no_process() from error
        try:
            send(self._connection, task, data)
            size = int.from_bytes(receive(self._connection, NUMBER_BYTES))
            self.reply = json.loads(receive(self._connection, size))
            if self.reply["shape"] is not None:
                self.pixels = np.empty(math.prod(self.reply["shape"]), np.uint8)
                receive_into(self._connection, self.pixels.data)
                self.pixels = self.pixels.reshape(self.reply["shape"])
        except ConnectionError as error:
            limits = f"{task['cpu_s']:.1f} s of processor time and {task['memory_bytes'] / 1e6:.0f} MB"
            message = f"{task['name']}: decoding takes more than {limits}; save it again as a usual JPEG or PNG"
            raise UserError(message) from error

    def end(self) -> None:
        """Ends the fork and the exchange."""
        if self._number is not None:
            with suppress(ProcessLookupError):
                os.kill(self._number, signal.SIGKILL)
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


def _no_process() -> ApiError:
    """The process that forks has died; the next request starts another."""
    return ApiError("pictures cannot be decoded now; try again", code="unavailable", status=503, retry_after_s=1)
