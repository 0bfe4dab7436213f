"""The Ray Serve deployment of a base model, and its engine, which chooses the jobs that are denoised together."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import numpy as np
from ray import serve as ray_serve

from rlhf.config.devices import resolve_device
from rlhf.diffusion.families.family import tile_sizes
from rlhf.diffusion.families.open_family import guidance_kinds, resolve_model
from rlhf.errors import UserError
from rlhf.promotion.catalogue import ServedPolicy
from rlhf.rewards.open_reward import open_reward, reads_captions
from rlhf.rewards.scores import Reward
from rlhf.storage.url_path import as_path
from serve.engine.jobs import Inpainted, Partial, Served, TileJob
from serve.engine.policy_cache import PolicyCache
from serve.engine.running_batch import RunningJob, advance, check_steps, estimate, finish, start_jobs
from serve.settings import EngineSettings

Event = Partial | Inpainted | BaseException
GATHER_S = 0.01
"""Seconds that an idle engine waits for further requests if batches are whole."""


@dataclass(kw_only=True, eq=False)
class Ticket:
    """A job, and the events that its client has not yet received."""

    job: TileJob
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    came: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    running: RunningJob | None = None
    is_over: bool = False
    """Whether the job was answered, failed, or lost its client."""


class Engine:
    """Runs jobs in a thread, step by step; between steps finished and abandoned jobs leave and waiting ones join.

    Everything else happens on the event loop, so that the thread shares no state while it works.
    """

    def __init__(self, cache: PolicyCache, reward: Reward | None, settings: EngineSettings) -> None:
        self._cache, self._reward, self._settings = cache, reward, settings
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._driver: asyncio.Task[None] | None = None

    async def inpaint(self, job: TileJob) -> AsyncIterator[Partial | Inpainted]:
        """Yields previews as they come, and at last the answer; a client that leaves cancels its job."""
        ticket = Ticket(job=job)
        self._waiting.append(ticket)
        self._drive()
        try:
            while not isinstance(event := await ticket.events.get(), Inpainted):
                if isinstance(event, BaseException):
                    raise event
                yield event
            yield event
        finally:
            ticket.is_over = True

    def _drive(self) -> None:
        if self._driver is None and (self._waiting or self._running):
            self._driver = asyncio.get_running_loop().create_task(self._run())
            self._driver.add_done_callback(self._pick_up)

    def _pick_up(self, driver: "asyncio.Task[None]") -> None:
        """Restarts the loop; a failed step fails the jobs that were in it, and no others."""
        self._driver = None
        failure = None if driver.cancelled() else driver.exception()
        if failure is not None:
            for ticket in self._running:
                ticket.events.put_nowait(failure)
            self._running = []
        self._drive()

    async def _run(self) -> None:
        if self._settings.batching == "whole":
            await asyncio.sleep(GATHER_S)
        while True:
            self._running = [t for t in self._running if not t.is_over]
            joining = self._choose()
            if not self._running and not joining:
                return
            self._running += joining
            for ticket, event in await asyncio.to_thread(self._work, list(self._running)):
                ticket.is_over |= not isinstance(event, Partial)
                ticket.events.put_nowait(event)

    def _choose(self) -> list[Ticket]:
        """Returns the jobs that join, longest waiting first, as long as the batch has room; an empty one takes any."""
        chosen: list[Ticket] = []
        if self._running and self._settings.batching == "whole":
            return chosen
        images = sum(len(t.job.sample_indices) for t in self._running)
        while self._waiting:
            head = self._waiting[0]
            images += len(head.job.sample_indices)
            if not head.is_over and images > self._settings.max_batch_images and (self._running or chosen):
                break
            self._waiting.popleft()
            if head.is_over:
                images -= len(head.job.sample_indices)
            else:
                chosen.append(head)
        return chosen

    def _work(self, tickets: list[Ticket]) -> list[tuple[Ticket, Event]]:
        """Takes one step of all jobs, in the thread."""
        events: list[tuple[Ticket, Event]] = []
        self._start([t for t in tickets if t.running is None], tickets, events)
        active = [(t, t.running) for t in tickets if t.running is not None]
        if not active:
            return events
        advance(self._cache, [running for _, running in active])
        due = [(t, running) for t, running in active if running.partial_index is not None]
        if due:
            events += zip([t for t, _ in due], estimate(self._cache, [r for _, r in due]), strict=True)
        done = [(t, running) for t, running in active if running.is_done]
        if done:
            answers = finish(self._cache, self._reward, [r for _, r in done])
            now = time.perf_counter()
            for (ticket, _), answer in zip(done, answers, strict=True):
                queued_s, denoised_s = ticket.started - ticket.came, now - ticket.started
                if isinstance(answer, Inpainted):
                    answer = replace(answer, queued_s=queued_s, denoised_s=denoised_s)
                events.append((ticket, answer))
        return events

    def _start(self, joining: list[Ticket], tickets: list[Ticket], events: list[tuple[Ticket, Event]]) -> None:
        now = time.perf_counter()
        in_use = [t.running.policy for t in tickets if t.running is not None]
        able: list[Ticket] = []
        for ticket in joining:
            ticket.started = now
            try:
                check_steps(self._cache, ticket.job)
                in_use.append(self._cache.take(ticket.job.policy, in_use))
                able.append(ticket)
            except UserError as error:
                events.append((ticket, error))
        if able:
            started = start_jobs(self._cache, in_use[-len(able) :], [t.job for t in able])
            for ticket, running in zip(able, started, strict=True):
                ticket.running = running


def warm_up(
    cache: PolicyCache, reward: Reward | None, settings: EngineSettings, make: Callable[[int], TileJob]
) -> None:
    """Paints a batch of each size, so that the first clients do not wait for one-time work.

    Raises UserError if the model paints numbers that are not finite.
    """
    base = cache.take(make(1).policy, [])
    for size in range(1, settings.max_batch_images + 1):
        running = start_jobs(cache, [base], [make(size)])
        while not running[0].is_done:
            advance(cache, running)
        for answer in finish(cache, reward, running):
            if isinstance(answer, UserError):
                raise answer


@ray_serve.deployment(max_ongoing_requests=10_000, max_constructor_retry_count=1)
class Inpainter:
    """One replica; the HTTP interface limits the number of requests that reach it."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        place = settings.reward
        reward = open_reward(place, resolve_device(settings.device)) if place is not None else None
        cache = PolicyCache(model, settings)
        if settings.warmup:
            warm_up(cache, reward, settings, lambda size: _blank_job(cache.base.native_px, size))
        self.served = Served(
            native_px=cache.base.native_px,
            sizes=tuple(tile_sizes(cache.base.family)),
            has_reward=reward is not None,
            reads_captions=place is not None and reads_captions(place),
            is_guided="true" in guidance_kinds(as_path(resolve_model(model))),
            unguided_scale=cache.base.family.unguided_scale,
        )
        self.engine = Engine(cache, reward, settings)

    async def describe(self) -> Served:
        """Returns what is served; an answer means that the model is loaded."""
        return self.served

    async def prepare(self, policy: ServedPolicy) -> None:
        """Loads a policy before it takes requests. Raises UserError if it does not load."""
        job = _blank_job(self.served.native_px, 1, policy)
        async for _ in self.engine.inpaint(job):
            pass

    async def inpaint(self, job: TileJob) -> Inpainted:
        """Returns the answer without previews."""
        return [event async for event in self.engine.inpaint(job) if isinstance(event, Inpainted)][0]

    async def stream(self, job: TileJob) -> AsyncIterator[Partial | Inpainted]:
        """Yields previews as they come, and at last the answer."""
        async for event in self.engine.inpaint(job):
            yield event


def _blank_job(native_px: int, images: int, policy: ServedPolicy | None = None) -> TileJob:
    """Returns a job of one step on a grey tile."""
    hole = np.zeros((native_px, native_px), bool)
    hole[: native_px // 2] = True
    return TileJob(
        policy=policy or ServedPolicy(),
        image=np.full((native_px, native_px, 3), 128, np.uint8),
        hole=hole,
        sample_indices=tuple(range(images)),
        seed=0,
        num_inference_steps=1,
        prompt="a grey square",
    )
