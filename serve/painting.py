"""One request from photograph to finished samples: square by square, pass by pass, by whoever paints jobs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from serve.crops import Box, crop_to_native, cut, fill, surround
from serve.jobs import Inpainted, Job, Partial
from serve.uploads import Upload

Send = Callable[[Job], AsyncIterator[Partial | Inpainted]]
"""Paints a job somewhere: estimates as they come, and at last the answer."""
REFINE_STRENGTH = 0.4
"""Share of the steps by which a finer pass goes over what a coarser one painted; chosen by eye on two photographs."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the samples look like before they are finished."""

    samples: list[Upload]
    index: int


@dataclass(frozen=True, kw_only=True)
class Painted:
    """Finished samples."""

    samples: list[Upload]
    """Each the region that `surround` gives."""
    scores: list[dict[str, float | None]]
    """Per sample: reward, lower, upper, the means over the squares of the last pass; empty without a reward model."""
    unsafe: list[bool]
    """Per sample, whether the safety checker flagged any square; empty where there is none."""
    jobs: list[Inpainted]
    """As they were answered, for measurements."""


async def paint(upload: Upload, passes: list[list[Box]], job: Job, native_px: int, send: Send) -> AsyncIterator:
    """Yields Estimates, as many as `job.partial_images` where the steps allow it, and at last what was Painted.

    `job` says what is wanted; its square is put in here. Samples share the first square, then each goes its own way.
    """
    region = surround([box for boxes in passes for box in boxes])
    part = cut(upload, region)
    squares = [(number, _shift(box, region)) for number, boxes in enumerate(passes) for box in boxes]
    told = [] if len(squares) == 1 else _spread(job.partial_images, len(squares))
    job = job if len(squares) == 1 else replace(job, partial_images=0)
    canvases, coarse = [part] * len(job.sample_indices), None
    done: list[list[Inpainted]] = []
    for tile, (number, box) in enumerate(squares):
        if tile and number != squares[tile - 1][0]:
            coarse, canvases, done = [canvas.rgb for canvas in canvases], [part] * len(canvases), []
        jobs = await asyncio.to_thread(_jobs, job, tile, box, canvases, coarse, native_px)
        if len(squares) == 1:
            async for event in send(jobs[0]):
                if isinstance(event, Partial):
                    yield Estimate(samples=[fill(part, box, image) for image in event.images], index=event.index)
                else:
                    done.append([event])
        else:
            done.append(await asyncio.gather(*(_answer(send, one) for one in jobs)))
        images = [image for answer in done[-1] for image in answer.images]
        canvases = await asyncio.to_thread(_fill_all, canvases, box, images)
        if tile in told:
            yield Estimate(samples=canvases, index=told.index(tile))
    yield Painted(samples=canvases, scores=_mean_scores(done), unsafe=_any_unsafe(done), jobs=sum(done, []))


def _shift(box: Box, region: Box) -> Box:
    left, top, right, bottom = box
    return left - region[0], top - region[1], right - region[0], bottom - region[1]


def _spread(estimates: int, squares: int) -> list[int]:
    """After which squares an estimate is told, evenly and never after the last."""
    return sorted({(i + 1) * squares // (estimates + 1) - 1 for i in range(estimates)} - {-1, squares - 1})


def _jobs(
    job: Job, tile: int, box: Box, canvases: list[Upload], coarse: list[np.ndarray] | None, native_px: int
) -> list[Job]:
    """One job for all samples while they are equal, else one for each."""
    if tile == 0:
        image, hole = crop_to_native(canvases[0], box, native_px)
        return [replace(job, image=image, hole=hole)]
    jobs = []
    for index, canvas in zip(job.sample_indices, canvases, strict=True):
        image, hole = crop_to_native(canvas, box, native_px)
        one = replace(job, image=image, hole=hole, tile=tile, sample_indices=(index,))
        if coarse is not None:
            start = _to_refine(canvas, box, coarse[job.sample_indices.index(index)], native_px)
            one = replace(one, start=start[None], strength=REFINE_STRENGTH)
        jobs.append(one)
    return jobs


def _to_refine(canvas: Upload, box: Box, coarse: np.ndarray, native_px: int) -> np.ndarray:
    """What the square holds already, and the coarser pass where it does not; uint8 [native, native, 3]."""
    left, top, right, bottom = box
    part = cut(canvas, box)
    pixels = np.where(part.hole[..., None], coarse[top:bottom, left:right], part.rgb)
    return np.asarray(Image.fromarray(pixels).resize((native_px, native_px), Image.Resampling.BOX))


async def _answer(send: Send, job: Job) -> Inpainted:
    async for event in send(job):
        if isinstance(event, Inpainted):
            return event
    raise RuntimeError("a job ended without an answer")


def _fill_all(canvases: list[Upload], box: Box, images: list[np.ndarray]) -> list[Upload]:
    return [fill(canvas, box, image) for canvas, image in zip(canvases, images, strict=True)]


def _mean_scores(squares: Sequence[Sequence[Inpainted]]) -> list[dict[str, float | None]]:
    """Means over squares. The mean of errors is at most the mean of their bounds, so lower and upper stay bounds."""
    rows = [[score for answer in answers for score in answer.scores] for answers in squares]
    samples = list(zip(*rows, strict=True))
    return [{name: _mean([score[name] for score in scores]) for name in scores[0]} for scores in samples]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _any_unsafe(squares: Sequence[Sequence[Inpainted]]) -> list[bool]:
    rows = [[flag for answer in answers for flag in answer.unsafe] for answers in squares]
    return [any(flags) for flags in zip(*rows, strict=True)]
