"""Decoding in other processes: limits of time and memory, cancelled work, the order in a crowd."""

import asyncio
import io
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import psutil
import pytest
from PIL import Image
from small_uploads import png

from rlhf.errors import UserError
from serve.api.decoder import FAST, FAST_AT_ONCE, SLOW, Decoder, Lane

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)


def large(side: int = 3700, kind: str = "WEBP") -> bytes:
    """A picture of 14 megapixels, small as a file."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (90, 120, 60)).save(buffer, format=kind, quality=10, method=0)
    return buffer.getvalue()


async def decode(decoder: Decoder, data: bytes) -> np.ndarray:
    return await decoder.decode(data, "image", await decoder.read_header(data, "image"))


def test_pixels_come_back_as_they_are() -> None:
    decoder = Decoder()
    assert np.array_equal(asyncio.run(decode(decoder, png(PIXELS))), PIXELS)
    assert np.array_equal(asyncio.run(decode(decoder, png(PIXELS[..., :3]))), PIXELS[..., :3])
    decoder.close()


@pytest.mark.parametrize("limits", [{"cpu_s": 0.01, "cpu_s_per_megapixel": 0}, {"memory_bytes": 80_000_000}])
def test_a_picture_that_takes_too_much_time_or_memory_is_refused_and_the_next_is_decoded(limits: dict) -> None:
    decoder, data = Decoder(slow=replace(SLOW, **limits)), large()
    with pytest.raises(UserError, match="^image: "):
        asyncio.run(decode(decoder, data))
    assert np.array_equal(asyncio.run(decode(decoder, png(PIXELS))), PIXELS)
    decoder.close()


def test_one_picture_takes_240_megabytes_at_most_which_holds_a_jpeg_of_25_megapixels() -> None:
    decoder = Decoder()
    assert asyncio.run(decode(decoder, large(5000, "JPEG"))).shape == (5000, 5000, 3)
    with pytest.raises(UserError, match="^image: decoding .* as a usual JPEG or PNG"):
        asyncio.run(decode(decoder, large(5000, "WEBP")))
    decoder.close()


def test_a_slow_picture_leaves_the_fast_lane_to_others_and_is_decoded_in_the_slow_one() -> None:
    decoder = Decoder(fast=replace(FAST, cpu_s=0.001, cpu_s_per_megapixel=0))
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)

    async def crowd() -> np.ndarray:
        async with decoder.slow.place():
            slow = [asyncio.create_task(decode(decoder, png(pixels))) for _ in range(FAST_AT_ONCE)]
            await until(lambda: len(decoder.slow.waiting) == FAST_AT_ONCE)
            assert np.array_equal(await decode(decoder, png(PIXELS)), PIXELS)
        return np.stack(await asyncio.gather(*slow))

    assert (asyncio.run(crowd()) == pixels).all()
    decoder.close()


def test_who_leaves_ends_the_decoding() -> None:
    decoder, data = Decoder(), large()

    async def leave() -> None:
        header = await decoder.read_header(data, "image")
        forks = psutil.Process(decoder.process.pid).children
        decoding = asyncio.create_task(decoder.decode(data, "image", header))
        await until(lambda: bool(forks()))
        decoding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await decoding
        await until(lambda: not forks())

    asyncio.run(leave())
    decoder.close()


async def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


def test_a_dead_process_is_replaced() -> None:
    decoder = Decoder()
    decoder.start()
    process = psutil.Process(decoder.process.pid)
    process.kill()
    process.wait()
    assert np.array_equal(asyncio.run(decode(decoder, png(PIXELS))), PIXELS)
    decoder.close()


def test_who_came_last_goes_first_and_who_leaves_takes_no_place() -> None:
    async def crowd() -> list[int]:
        lane, order, may_end = Lane(1), [], asyncio.Event()

        async def enter(number: int) -> None:
            async with lane.place():
                order.append(number)
                await may_end.wait()

        tasks = [asyncio.create_task(enter(number)) for number in range(5)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        may_end.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        await enter(9)
        return order

    assert asyncio.run(crowd()) == [0, 4, 2, 1, 9]
