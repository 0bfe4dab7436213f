"""Paints a hole of any size tile by tile; serving takes the same turns, with tiles on several replicas."""

import numpy as np

from rlhf.data.buckets import nearest_bucket
from rlhf.data.prompts import Prompt
from rlhf.diffusion.families.family import tile_sizes
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.tile_turns import REFINE_STRENGTH, Tile, go_on, take_turns
from rlhf.diffusion.tiles import Canvas, plan_passes, surround
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.storage.images import image_to_tensor, mask_to_tensor, to_8bit


def paint(
    policy: Policy,
    canvas: Canvas,
    *,
    sample_indices: tuple[int, ...] = (0,),
    num_inference_steps: int,
    seed_key: tuple[object, ...],
) -> list[Canvas]:
    """Fill a hole of any size; returns the whole photograph once per sample, with its known pixels unchanged."""
    size = nearest_bucket(canvas.size, tile_sizes(policy.family))
    passes = plan_passes(canvas.hole, size)
    turns = take_turns(canvas, passes, sample_indices, size)
    turn, samples = go_on(turns, None)
    while turn is not None:
        key = (*seed_key, turn.number)
        painted = [_paint_tile(policy, tile, num_inference_steps, key) for tile in turn.tiles]
        turn, samples = go_on(turns, list(np.concatenate(painted)))
    left, top, right, bottom = surround([box for boxes in passes for box in boxes])
    return [_put(canvas, slice(top, bottom), slice(left, right), done) for done in samples]


def _put(canvas: Canvas, rows: slice, columns: slice, done: Canvas) -> Canvas:
    rgb, rgba = canvas.rgb.copy(), canvas.rgba.copy()
    rgb[rows, columns], rgba[rows, columns] = done.rgb, done.rgba
    return Canvas(rgb=rgb, rgba=rgba, hole=np.zeros_like(canvas.hole))


def _paint_tile(policy: Policy, tile: Tile, steps: int, seed_key: tuple[object, ...]) -> np.ndarray:
    """Images of one tile, uint8 [n, h, w, 3]."""
    first = 0 if tile.start is None else steps - max(1, round(REFINE_STRENGTH * steps))
    plan = RolloutPlan(num_inference_steps=steps, eta=0.0, stochastic_steps=frozenset(), first_step=first)
    prompt = Prompt(
        prompt_id="",
        photograph="",
        source="",
        hole="",
        split="",
        image=image_to_tensor(tile.image if tile.start is None else tile.start[0]),
        mask=mask_to_tensor(tile.hole),
    )
    images = rollout(policy, [prompt], plan, sample_indices=tile.sample_indices, seed_key=seed_key).images
    return to_8bit(images).permute(0, 2, 3, 1).contiguous().numpy()


def to_canvas(rgb: np.ndarray, hole: np.ndarray) -> Canvas:
    """An opaque photograph, uint8 [H, W, 3], with a hole, bool [H, W]."""
    return Canvas(rgb=rgb, rgba=np.dstack([rgb, np.full(hole.shape, 255, np.uint8)]), hole=hole)
