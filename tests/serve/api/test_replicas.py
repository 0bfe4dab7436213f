"""Jobs that are sent again when a replica dies, with replicas that die as a script says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError

from rlhf.errors import UserError
from serve.api.api_errors import ApiError
from serve.api.replicas import ATTEMPTS, Replicas
from serve.api.request_metrics import RETRIED
from serve.engine.jobs import Inpainted, Partial, Served, TileJob

SERVED = Served(native_px=64, sizes=((64, 64),), has_reward=False)
PIXELS = np.zeros((1, 64, 64, 3), np.uint8)
DONE = Inpainted(images=PIXELS, scores=(), unsafe=(), queued_s=0.0, denoised_s=0.0, batch_images=1.0)
DEATH = ActorUnavailableError("the replica died", None)


class ScriptedMethod:
    """A method of a deployment handle that gives the next event list of a script with each call."""

    def __init__(self, *script: list[Any], is_stream: bool = False) -> None:
        self.script, self.is_stream, self.calls = list(script), is_stream, 0

    def remote(self, *_: Any) -> Any:
        self.calls += 1
        events = self.script.pop(0)
        return self._stream(events) if self.is_stream else self._answer(events)

    async def _answer(self, events: list[Any]) -> Any:
        return [event async for event in self._stream(events)][0]

    async def _stream(self, events: list[Any]) -> AsyncIterator[Any]:
        for event in events:
            if isinstance(event, Exception):
                raise event
            yield event


class ScriptedHandle:
    """A deployment handle whose methods follow scripts."""

    def __init__(self, **methods: ScriptedMethod) -> None:
        self.__dict__.update(methods)

    def options(self, *, stream: bool) -> "ScriptedHandle":
        assert stream
        return self


def job(partial_images: int = 0) -> TileJob:
    hole = np.ones((64, 64), bool)
    fields = {"sample_indices": (0,), "seed": 0, "num_inference_steps": 1, "partial_images": partial_images}
    return TileJob(image=PIXELS[0], hole=hole, **fields)


async def collect(replicas: Replicas, wanted: TileJob) -> list[Partial | Inpainted]:
    return [event async for event in replicas.inpaint(wanted)]


def replicas_of(**methods: ScriptedMethod) -> Replicas:
    return Replicas(ScriptedHandle(**methods), first_retry_wait_s=0.0)


def retries(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `work`, and by how much it raised the count of retried jobs."""
    before = RETRIED._value.get()
    return work(), RETRIED._value.get() - before


def test_a_job_is_sent_again_until_a_replica_answers():
    method = ScriptedMethod([DEATH], [DEATH], [DONE])
    done, counted = retries(lambda: asyncio.run(collect(replicas_of(inpaint=method), job())))
    assert done == [DONE]
    assert (method.calls, counted) == (3, 2)


def test_previews_that_were_sent_before_a_death_are_not_sent_again():
    first, second = (Partial(images=PIXELS, index=index) for index in (0, 1))
    method = ScriptedMethod([first, DEATH], [first, second, DEATH], [first, second, DONE], is_stream=True)
    events = asyncio.run(collect(replicas_of(stream=method), job(partial_images=2)))
    assert events == [first, second, DONE]


def test_a_job_is_given_up_with_503_after_the_last_attempt():
    method = ScriptedMethod(*[[DEATH]] * ATTEMPTS)
    with pytest.raises(ApiError, match="replicas die") as refused:
        asyncio.run(collect(replicas_of(inpaint=method), job()))
    assert (refused.value.status, method.calls) == (503, ATTEMPTS)


def test_an_error_that_is_no_death_is_not_tried_again():
    method = ScriptedMethod([UserError("does not load")], [None])
    with pytest.raises(UserError, match="does not load"):
        asyncio.run(replicas_of(prepare=method).prepare(None))
    assert method.calls == 1


def test_what_is_served_is_asked_once_and_again_after_a_death():
    method = ScriptedMethod([DEATH], [SERVED])
    replicas = replicas_of(describe=method)

    async def ask_twice() -> list[Served]:
        return [await replicas.served(), await replicas.served()]

    assert asyncio.run(ask_twice()) == [SERVED, SERVED]
    assert method.calls == 2


def test_a_client_that_leaves_a_stream_ends_it_without_another_attempt():
    first = Partial(images=PIXELS, index=0)
    method = ScriptedMethod([first, DONE], [first, DONE], is_stream=True)

    async def leave() -> None:
        events = replicas_of(stream=method).inpaint(job(partial_images=1))
        await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert method.calls == 1
