"""Clients of an HTTP service, in a closed loop or at a given rate, and the outcome of their requests."""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

Fields = dict[str, str]


@dataclass(kw_only=True)
class Outcome:
    """Outcome of all requests of a load."""

    seconds: float = 0.0
    """Time from the first request to the last answer."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Counts of HTTP statuses, and of exceptions if there was no answer."""
    latencies: list[float] = field(default_factory=list)
    """Durations of requests answered with 200, in seconds."""
    finished: list[float] = field(default_factory=list)
    """Times of these answers, in seconds after the first request."""

    def figures(self) -> dict[str, Any]:
        """Returns rate, percentiles of the latency, and statuses."""
        marks = (50, 90, 99)
        cuts = np.percentile(self.latencies, marks) if self.latencies else [float("nan")] * len(marks)
        return {
            "images_per_s": len(self.latencies) / self.seconds,
            **{f"latency_p{mark}_s": float(cut) for mark, cut in zip(marks, cuts, strict=True)},
            "statuses": dict(self.statuses),
        }


async def _ask(
    session: aiohttp.ClientSession, url: str, files: dict[str, bytes], fields: Fields, told: Outcome
) -> None:
    form = aiohttp.FormData()
    for name, data in files.items():
        form.add_field(name, data, filename=f"{name}.png", content_type="image/png")
    for name, value in fields.items():
        form.add_field(name, value)
    started = time.perf_counter()
    try:
        async with session.post(url, data=form) as answer:
            await answer.read()
            status = str(answer.status)
    except (aiohttp.ClientError, TimeoutError) as error:
        status = type(error).__name__
    told.statuses[status] += 1
    if status == "200":
        told.latencies.append(time.perf_counter() - started)
        told.finished.append(time.perf_counter())


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=300))


async def closed_loop(
    url: str,
    files: dict[str, bytes],
    draw: Callable[[int], Fields],
    *,
    clients: int,
    seconds: float = math.inf,
    requests: int = 10**9,
) -> Outcome:
    """Runs clients that each send the next request after an answer; `draw` returns the fields of request i.

    None is sent after `seconds` or after `requests` in all.
    """
    told, started, asked = Outcome(), time.perf_counter(), iter(range(requests))
    async with _session() as session:

        async def be_client() -> None:
            for number in asked:
                if time.perf_counter() - started >= seconds:
                    return
                await _ask(session, url, files, draw(number), told)

        await asyncio.gather(*(be_client() for _ in range(clients)))
    told.seconds = time.perf_counter() - started
    told.finished = [at - started for at in told.finished]
    return told


async def open_loop(
    url: str, files: dict[str, bytes], draw: Callable[[int], Fields], *, rate: float, seconds: float
) -> Outcome:
    """Sends requests at random times, `rate` per second on average, without waiting for earlier answers."""
    told, started, tasks = Outcome(), time.perf_counter(), []
    chance = random.Random(0)
    async with _session() as session:
        number = 0
        while time.perf_counter() - started < seconds:
            tasks.append(asyncio.create_task(_ask(session, url, files, draw(number), told)))
            number += 1
            await asyncio.sleep(chance.expovariate(rate))
        await asyncio.gather(*tasks)
    told.seconds = time.perf_counter() - started
    told.finished = [at - started for at in told.finished]
    return told
