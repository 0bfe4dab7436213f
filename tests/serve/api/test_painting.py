"""Edits of several shapes, painted by an engine at the same time."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from family_cases import CASES
from small_engine import new_engine

from rlhf.data.buckets import Size
from rlhf.diffusion.families.family import tile_sizes
from rlhf.diffusion.tile_painting import to_canvas
from rlhf.diffusion.tiles import Canvas, put_back
from rlhf.promotion.catalogue import ServedName, ServedPolicy
from serve.api.edit_request import EditRequest
from serve.api.painting import Edit, PaintedEdit, paint, plan_edit
from serve.api.served_names import Chosen
from serve.engine.engine import Engine
from serve.engine.jobs import Inpainted, Partial, TileJob

SHAPES = [(60, 240), (240, 60), (100, 100), (70, 270)]
PAINTED = [(32, 128), (128, 32), (64, 64), (32, 128)]
"""Height and width of their tiles."""


def photograph(shape: Size, seed: int) -> Canvas:
    rgb = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    hole = np.zeros(shape, bool)
    hole[shape[0] // 3 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = True
    return to_canvas(rgb, hole)


def plan(shape: Size, seed: int, sizes: list[Size]) -> Edit:
    policy = ServedPolicy()
    chosen = Chosen(name="model", served=ServedName(base="model", current=policy), policy=policy)
    asked = EditRequest(seed=seed, n=2, num_inference_steps=3)
    return plan_edit(asked, photograph(shape, seed), chosen, sizes)


def paint_together(engine: Engine, edits: list[Edit]) -> list[PaintedEdit]:
    """Paints edits of one tile each, whose jobs reach the engine at the same time."""

    async def paint_all() -> list[PaintedEdit]:
        arrived, are_there = itertools.count(1), asyncio.Event()

        async def send(job: TileJob) -> AsyncIterator[Partial | Inpainted]:
            if next(arrived) == len(edits):
                are_there.set()
            await are_there.wait()
            async for event in engine.inpaint(job):
                yield event

        async def painted(edit: Edit) -> PaintedEdit:
            return [event async for event in paint(edit, send) if isinstance(event, PaintedEdit)][0]

        return await asyncio.gather(*map(painted, edits))

    return asyncio.run(paint_all())


@pytest.mark.parametrize("name", ["FluxFill", "StableDiffusionXL"])
def test_edits_are_painted_in_their_photographs_shape_those_of_one_size_together_and_each_as_alone(
    name: str, tmp_path: Path
) -> None:
    CASES[name].build().save_pretrained(tmp_path)
    engine = new_engine(tmp_path)
    sizes = tile_sizes(engine._cache.base.family)
    edits = [plan(shape, seed, sizes) for seed, shape in enumerate(SHAPES)]
    together = paint_together(engine, edits)
    assert [edit.size for edit in edits] == PAINTED
    assert [job.batch_images for one in together for job in one.jobs] == [4, 2, 2, 4]
    for edit, ours in zip(edits, together, strict=True):
        (alone,) = paint_together(engine, [edit])
        assert [job.images.shape[1:3] for job in ours.jobs] == [edit.size]
        for sample, other in zip(ours.samples, alone.samples, strict=True):
            rounding = 1
            assert np.abs(sample.rgb.astype(int) - other.rgb).max() <= rounding
            answer = np.asarray(put_back(edit.canvas, edit.region, sample))
            known = ~edit.canvas.hole
            assert answer.shape == edit.canvas.rgb.shape
            assert np.array_equal(answer[known], edit.canvas.rgb[known])
            assert (answer[~known] != edit.canvas.rgb[~known]).any(axis=1).mean() > 0.9
