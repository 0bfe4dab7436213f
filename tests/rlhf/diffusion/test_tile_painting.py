"""Holes of any size, square by square, on a small real pipeline."""

from pathlib import Path

import numpy as np
import pytest
from small_parts import SIZE_PX

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.tile_painting import paint, to_canvas
from rlhf.diffusion.tile_turns import REFINE_STRENGTH, go_on, take_turns
from rlhf.diffusion.tiles import Canvas, plan_passes

SIZE = (SIZE_PX, SIZE_PX)


def photograph(height: int, width: int, *hole: slice) -> Canvas:
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    marked = np.zeros((height, width), bool)
    marked[hole] = True
    return to_canvas(rgb, marked)


@pytest.mark.parametrize(
    ("height", "width", "hole"),
    [
        (40, 50, (slice(10, 20), slice(10, 25))),
        (40, 150, (slice(0, 40), slice(60, 150))),
        (200, 200, (slice(20, 160), slice(20, 180))),
    ],
)
def test_every_hole_is_filled_and_known_pixels_stay(small_pipeline: Path, height: int, width: int, hole: tuple):
    policy = load_policy(ModelConfig(path=str(small_pipeline)))
    canvas = photograph(height, width, *hole)
    one, two = paint(policy, canvas, sample_indices=(0, 1), num_inference_steps=2, seed_key=("test",))
    for sample in (one, two):
        assert not sample.hole.any()
        assert np.array_equal(sample.rgb[~canvas.hole], canvas.rgb[~canvas.hole])
        assert (sample.rgb[canvas.hole] != canvas.rgb[canvas.hole]).any(axis=1).mean() > 0.9
        assert np.array_equal(sample.rgba[..., :3], sample.rgb)
    assert not np.array_equal(one.rgb, two.rgb)


def test_sample_i_is_the_same_whatever_the_others_are(small_pipeline: Path):
    policy = load_policy(ModelConfig(path=str(small_pipeline)))
    canvas = photograph(40, 150, slice(0, 40), slice(60, 150))
    both = paint(policy, canvas, sample_indices=(0, 1), num_inference_steps=2, seed_key=("test",))
    (second,) = paint(policy, canvas, sample_indices=(1,), num_inference_steps=2, seed_key=("test",))
    rounding = 1
    assert np.abs(both[1].rgb.astype(int) - second.rgb).max() <= rounding


def test_later_tiles_see_what_earlier_ones_painted_and_finer_passes_start_from_the_coarser():
    canvas = photograph(200, 200, slice(20, 160), slice(20, 180))
    passes = plan_passes(canvas.hole, SIZE)
    assert len(passes) > 1
    turns = take_turns(canvas, passes, (0, 1), SIZE)
    turn, samples = go_on(turns, None)
    levels = (50, 200)
    seen = []
    while turn is not None:
        seen.append(turn)
        images = [np.full((SIZE_PX, SIZE_PX, 3), level, np.uint8) for level in levels]
        turn, samples = go_on(turns, images)
    first_of_second = seen[len(passes[0])]
    assert [len(t.tiles) for t in seen] == [1] + [2] * (len(seen) - 1)
    for tile, level in zip(first_of_second.tiles, levels, strict=True):
        assert tile.start is not None
        started = np.asarray(tile.start[0])
        assert (started[tile.hole] == level).mean() > 0.8
    assert [t.is_last_pass for t in seen] == [False] * sum(map(len, passes[:-1])) + [True] * len(passes[-1])
    for sample, level in zip(samples, levels, strict=True):
        assert (sample.rgb[sample.rgb != sample.rgba[..., :3]]).size == 0
        assert (sample.rgb == level).all(axis=2).sum() >= canvas.hole.sum()


def test_a_refinement_runs_its_share_of_the_steps(small_pipeline: Path):
    policy = load_policy(ModelConfig(path=str(small_pipeline)))
    calls: list[int] = []
    forward = policy.network.forward
    policy.network.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    canvas = photograph(200, 200, slice(20, 160), slice(20, 180))
    paint(policy, canvas, num_inference_steps=10, seed_key=("test",))
    coarse, *finer = plan_passes(canvas.hole, SIZE)
    assert len(calls) == 10 * len(coarse) + round(10 * REFINE_STRENGTH) * sum(map(len, finer))
