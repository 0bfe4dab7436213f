"""Decodes uploads while the service goes on: who may decode when, and who leaves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import numpy as np

from rlhf.errors import UserError
from rlhf.storage.bounded_decoding import Conversation, DecodingProcess, Limits, NoProcessError, SlowPictureError
from rlhf.storage.decoding import Header
from serve.api.api_errors import ApiError

MAX_PICTURE_PX = 25_000_000
"""Most pixels of an uploaded picture, and of a photograph with the border that is added to it."""
FAST_PX = 2_000_000
"""Most pixels of a picture that decodes beside others, each counted as often as a JPEG's scans pass it."""
FAST_AT_ONCE = 2
"""Heads of files, and pictures of up to FAST_PX, that are decoded at a time."""
FAST = Limits(max_pixels=MAX_PICTURE_PX, header_cpu_s=0.1, cpu_s=0.05, cpu_s_per_megapixel=0.1, politeness=3)
"""Twice what the slowest format takes. Pictures that take more begin anew in the slow lane, so that hostile ones leave
the fast lane to usual ones."""
SLOW = Limits(max_pixels=MAX_PICTURE_PX, memory_bytes=240_000_000, memory_bytes_per_pixel=0, politeness=15)
"""Painting goes before decoding, and slow pictures come last. JPEG, PNG, TIFF, GIF and BMP of MAX_PICTURE_PX fit into
the memory; WebP fits up to 14 million pixels, AVIF and JPEG without subsampling up to 20 million."""


class Lane:
    """Lets a few in at once. Who came last goes first, so that a heap of slow files delays only its own sender."""

    def __init__(self, places: int) -> None:
        self._free = places
        self.waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Holds a place, and waits for it."""
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self.waiting:
                    self.waiting.remove(turn)
                elif not turn.cancelled():
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self.waiting:
            turn = self.waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Decoder:
    """Has pictures decoded; whoever is cancelled ends the decoding at once."""

    def __init__(self, fast: Limits = FAST, slow: Limits = SLOW) -> None:
        self.process = DecodingProcess()
        self.heads, self.fast, self.slow = Lane(FAST_AT_ONCE), Lane(FAST_AT_ONCE), Lane(1)
        self._fast_limits, self._slow_limits = fast, slow

    async def read_header(self, data: bytes, name: str) -> Header:
        """Reads the head of a file. Raises UserError, naming it, as `decode` does."""
        async with self.heads.place():
            return (await _hold(self.process.ask_header(data, name, self._fast_limits))).header()

    async def decode(self, data: bytes, name: str, header: Header) -> np.ndarray:
        """Decodes to upright uint8 [H, W, 3 or 4].

        Raises UserError if the file is refused by `rlhf.storage.decoding`, or takes too much time or memory, and
        ApiError 503 if nothing can be decoded now.
        """
        if header.passes_px <= FAST_PX:
            with suppress(SlowPictureError):
                async with self.fast.place():
                    return (await _hold(self.process.ask_pixels(data, name, header, self._fast_limits))).pixels()
        async with self.slow.place():
            return (await _hold(self.process.ask_pixels(data, name, header, self._slow_limits))).pixels()

    def start(self) -> None:
        """Starts the process that decodes, unless it runs; the first picture does it too."""
        self.process.start()

    def close(self) -> None:
        """Ends the process that decodes."""
        self.process.close()


async def _hold(conversation: Conversation) -> Conversation:
    holding = asyncio.create_task(asyncio.to_thread(conversation.hold))
    try:
        return await asyncio.shield(holding)
    except asyncio.CancelledError:
        conversation.end()
        with suppress(OSError, UserError):
            await holding
        raise
    except NoProcessError as error:
        message = "pictures cannot be decoded now; try again"
        raise ApiError(message, code="unavailable", status=503, retry_after_s=1) from error
