"""Paints a hole of any size square by square; serving takes the same turns, with squares on several replicas."""

import numpy as np

from rlhf.data.prompts import Prompt
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.tile_turns import REFINE_STRENGTH, Square, go_on, take_turns
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
    passes = plan_passes(canvas.hole, policy.native_px)
    turns = take_turns(canvas, passes, sample_indices, policy.native_px)
    turn, samples = go_on(turns, None)
    while turn is not None:
        key = (*seed_key, turn.number)
        painted = [_paint_square(policy, square, num_inference_steps, key) for square in turn.squares]
        turn, samples = go_on(turns, list(np.concatenate(painted)))
    left, top, right, bottom = surround([box for boxes in passes for box in boxes])
    return [_put(canvas, slice(top, bottom), slice(left, right), done) for done in samples]


def _put(canvas: Canvas, rows: slice, columns: slice, done: Canvas) -> Canvas:
    rgb, rgba = canvas.rgb.copy(), canvas.rgba.copy()
    rgb[rows, columns], rgba[rows, columns] = done.rgb, done.rgba
    return Canvas(rgb=rgb, rgba=rgba, hole=np.zeros_like(canvas.hole))


def _paint_square(policy: Policy, square: Square, steps: int, seed_key: tuple[object, ...]) -> np.ndarray:
    """Images of one square, uint8 [n, native, native, 3]."""
    first = 0 if square.start is None else steps - max(1, round(REFINE_STRENGTH * steps))
    plan = RolloutPlan(num_inference_steps=steps, eta=0.0, stochastic_steps=frozenset(), first_step=first)
    prompt = Prompt(
        prompt_id="",
        photograph="",
        source="",
        hole="",
        split="",
        image=image_to_tensor(square.image if square.start is None else square.start[0]),
        mask=mask_to_tensor(square.hole),
    )
    images = rollout(policy, [prompt], plan, sample_indices=square.sample_indices, seed_key=seed_key).images
    return to_8bit(images).permute(0, 2, 3, 1).contiguous().numpy()


def to_canvas(rgb: np.ndarray, hole: np.ndarray) -> Canvas:
    """An opaque photograph, uint8 [H, W, 3], with a hole, bool [H, W]."""
    return Canvas(rgb=rgb, rgba=np.dstack([rgb, np.full(hole.shape, 255, np.uint8)]), hole=hole)
