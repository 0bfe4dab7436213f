"""One edit from its plan to its finished samples: tiles become jobs, painted by any replica."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from rlhf.data.buckets import Size, nearest_bucket
from rlhf.diffusion.tile_turns import REFINE_STRENGTH, Tile, Turn, go_on, take_turns
from rlhf.diffusion.tiles import Box, Canvas, plan_passes, surround
from rlhf.promotion.catalogue import ServedPolicy
from serve.api.api_errors import ApiError
from serve.api.edit_request import EditRequest
from serve.api.served_names import Chosen
from serve.engine.jobs import Inpainted, Partial, SampleScore, TileJob

Send = Callable[[TileJob], AsyncIterator[Partial | Inpainted]]
"""Sends a job to a replica: yields previews as they come, and at last the answer."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A decoded request, and the plan by which it is painted."""

    asked: EditRequest
    canvas: Canvas
    """The photograph, extended if asked, and its hole."""
    model: str
    """Name of the model, as in `GET /v1/models`."""
    base: str
    """Base model of the policy."""
    policy: ServedPolicy
    standing: str
    """`current`, `canary` or `previous`: what the policy is under its name."""
    size: Size
    """Height and width of the tiles when they are painted."""
    seed: int
    passes: list[list[Box]]
    """Tiles in pixels of the canvas, pass by pass."""

    @property
    def region(self) -> Box:
        """The part of the canvas that the tiles cover."""
        return surround([box for boxes in self.passes for box in boxes])

    @property
    def tiles(self) -> int:
        """Number of tiles of all passes."""
        return sum(map(len, self.passes))

    def job(self) -> TileJob:
        """Returns the job of the whole edit; `paint` puts the tiles in one by one."""
        asked = self.asked
        return TileJob(
            policy=self.policy,
            image=self.canvas.rgb[:0],
            hole=self.canvas.hole[:0],
            sample_indices=tuple(range(asked.best_of or asked.n)),
            seed=self.seed,
            num_inference_steps=asked.num_inference_steps,
            prompt=asked.prompt,
            guidance_scale=asked.guidance_scale,
            partial_images=asked.partial_images if asked.stream else 0,
        )


@dataclass(frozen=True, kw_only=True)
class EditProgress:
    """A preview: what the samples look like before they are finished."""

    samples: list[Canvas]
    index: int
    """0 for the first preview."""


@dataclass(frozen=True, kw_only=True)
class PaintedEdit:
    """Finished samples."""

    samples: list[Canvas]
    """The region of the edit, once per sample."""
    scores: list[SampleScore]
    """Per sample, the mean over the tiles of the last pass; empty without a reward model."""
    unsafe: list[bool]
    """Per sample, whether the safety checker flagged any tile; empty without a checker."""
    jobs: list[Inpainted]
    """The answers of the replicas, for measurements."""


def plan_edit(asked: EditRequest, canvas: Canvas, chosen: Chosen, sizes: Sequence[Size]) -> Edit:
    """Plans the tiles of a decoded request, in the shape among `sizes` that is nearest to the photograph's."""
    size = nearest_bucket(canvas.size, sizes)
    return Edit(
        asked=asked,
        canvas=canvas,
        model=chosen.name,
        base=chosen.served.base,
        policy=chosen.policy,
        standing=chosen.standing,
        size=size,
        seed=random.randrange(2**31) if asked.seed is None else asked.seed,
        passes=plan_passes(canvas.hole, size),
    )


async def paint(edit: Edit, send: Send) -> AsyncIterator[EditProgress | PaintedEdit]:
    """Yields up to `partial_images` previews, and at last the finished samples.

    Raises ApiError if the safety checker flags a sample.
    """
    job, count = edit.job(), edit.tiles
    previewed = _spread(job.partial_images, count) if count > 1 else []
    turns = take_turns(edit.canvas, edit.passes, job.sample_indices, edit.size)
    done: list[list[Inpainted]] = []
    last_pass: list[list[Inpainted]] = []
    turn, samples = await asyncio.to_thread(go_on, turns, None)
    while turn is not None:
        jobs = [_to_job(job, turn, tile, job.partial_images if count == 1 else 0) for tile in turn.tiles]
        if count == 1:
            async for event in send(jobs[0]):
                if isinstance(event, Partial):
                    yield EditProgress(samples=turn.show(list(event.images)), index=event.index)
                else:
                    done.append([event])
        else:
            done.append(await asyncio.gather(*(_answer(send, one) for one in jobs)))
        last_pass += [done[-1]] if turn.is_last_pass else []
        number = turn.number
        turn, samples = await asyncio.to_thread(go_on, turns, [i for answer in done[-1] for i in answer.images])
        if number in previewed:
            yield EditProgress(samples=samples, index=previewed.index(number))
    unsafe = _any_unsafe(done)
    if any(unsafe):
        message = "the model's safety checker refused what was painted; use another seed or hole"
        raise ApiError(message, code="moderation_blocked", status=400)
    answers = [answer for tile in done for answer in tile]
    yield PaintedEdit(samples=samples, scores=_mean_scores(last_pass), unsafe=unsafe, jobs=answers)


def _spread(previews: int, tiles: int) -> list[int]:
    """Numbers of the tiles after which a preview is sent, evenly spaced and never after the last."""
    return sorted({(i + 1) * tiles // (previews + 1) - 1 for i in range(previews)} - {-1, tiles - 1})


def _to_job(job: TileJob, turn: Turn, tile: Tile, previews: int) -> TileJob:
    return replace(
        job,
        image=tile.image,
        hole=tile.hole,
        tile=turn.number,
        sample_indices=tile.sample_indices,
        start=tile.start,
        strength=1.0 if tile.start is None else REFINE_STRENGTH,
        partial_images=previews,
    )


async def _answer(send: Send, job: TileJob) -> Inpainted:
    async for event in send(job):
        if isinstance(event, Inpainted):
            return event
    raise RuntimeError("a job ended without an answer")


def _mean_scores(tiles: Sequence[Sequence[Inpainted]]) -> list[SampleScore]:
    """Means over tiles. The mean of errors is at most the mean of their bounds, so lower and upper stay bounds."""
    rows = [[score for answer in answers for score in answer.scores] for answers in tiles]
    samples = list(zip(*rows, strict=True))
    return [SampleScore(*map(_mean, zip(*scores, strict=True))) for scores in samples]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _any_unsafe(tiles: Sequence[Sequence[Inpainted]]) -> list[bool]:
    """Whether any tile of a sample was flagged. A tile painted before samples diverge flags every sample."""
    rows = [[flag for answer in answers for flag in answer.unsafe] for answers in tiles]
    return [any(flags) for flags in zip(*rows, strict=True)]
