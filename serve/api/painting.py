"""One request from photograph to finished samples: each turn's squares become jobs, painted wherever a replica is."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from rlhf.diffusion.tile_painting import REFINE_STRENGTH, Square, Turn, go_on, take_turns
from rlhf.diffusion.tiles import Box, Canvas
from serve.engine.jobs import Inpainted, Job, Partial

Send = Callable[[Job], AsyncIterator[Partial | Inpainted]]
"""Paints a job somewhere: estimates as they come, and at last the answer."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the samples look like before they are finished."""

    samples: list[Canvas]
    index: int


@dataclass(frozen=True, kw_only=True)
class Painted:
    """Finished samples."""

    samples: list[Canvas]
    """Each the region that `surround` gives."""
    scores: list[dict[str, float | None]]
    """Per sample: reward, lower, upper, the means over the squares of the last pass; empty without a reward model."""
    unsafe: list[bool]
    """Per sample, whether the safety checker flagged any square; empty where there is none."""
    jobs: list[Inpainted]
    """As they were answered, for measurements."""


async def paint(canvas: Canvas, passes: list[list[Box]], job: Job, native_px: int, send: Send) -> AsyncIterator:
    """Yields Estimates, as many as `job.partial_images` where the steps allow it, and at last what was Painted.

    `job` says what is wanted; its square is put in here.
    """
    count = sum(map(len, passes))
    told = _spread(job.partial_images, count) if count > 1 else []
    turns = take_turns(canvas, passes, job.sample_indices, native_px)
    done: list[list[Inpainted]] = []
    last_pass: list[list[Inpainted]] = []
    turn, samples = await asyncio.to_thread(go_on, turns, None)
    while turn is not None:
        estimates = job.partial_images if count == 1 else 0
        jobs = [_to_job(job, turn, square, estimates) for square in turn.squares]
        if count == 1:
            async for event in send(jobs[0]):
                if isinstance(event, Partial):
                    yield Estimate(samples=turn.show(list(event.images)), index=event.index)
                else:
                    done.append([event])
        else:
            done.append(await asyncio.gather(*(_answer(send, one) for one in jobs)))
        last_pass += [done[-1]] if turn.is_last_pass else []
        number = turn.number
        turn, samples = await asyncio.to_thread(go_on, turns, [i for answer in done[-1] for i in answer.images])
        if number in told:
            yield Estimate(samples=samples, index=told.index(number))
    answers = [answer for square in done for answer in square]
    yield Painted(samples=samples, scores=_mean_scores(last_pass), unsafe=_any_unsafe(done), jobs=answers)


def _spread(estimates: int, squares: int) -> list[int]:
    """After which squares an estimate is told, evenly and never after the last."""
    return sorted({(i + 1) * squares // (estimates + 1) - 1 for i in range(estimates)} - {-1, squares - 1})


def _to_job(job: Job, turn: Turn, square: Square, estimates: int) -> Job:
    return replace(
        job,
        image=square.image,
        hole=square.hole,
        tile=turn.number,
        sample_indices=square.sample_indices,
        start=square.start,
        strength=1.0 if square.start is None else REFINE_STRENGTH,
        partial_images=estimates,
    )


async def _answer(send: Send, job: Job) -> Inpainted:
    async for event in send(job):
        if isinstance(event, Inpainted):
            return event
    raise RuntimeError("a job ended without an answer")


def _mean_scores(squares: Sequence[Sequence[Inpainted]]) -> list[dict[str, float | None]]:
    """Means over squares. The mean of errors is at most the mean of their bounds, so lower and upper stay bounds."""
    rows = [[score for answer in answers for score in answer.scores] for answers in squares]
    samples = list(zip(*rows, strict=True))
    return [{name: _mean([score[name] for score in scores]) for name in scores[0]} for scores in samples]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _any_unsafe(squares: Sequence[Sequence[Inpainted]]) -> list[bool]:
    """A square before the samples part counts for all of them."""
    rows = [[flag for answer in answers for flag in answer.unsafe] for answers in squares]
    return [any(flags) for flags in zip(*rows, strict=True)]
