"""An engine of a small random model, jobs for it, and its answers."""

from pathlib import Path

import numpy as np
from small_parts import small_prompts

from rlhf.storage.images import tensor_to_image
from serve.engine.engine import Engine
from serve.engine.jobs import Inpainted, TileJob
from serve.engine.policy_cache import PolicyCache
from serve.settings import EngineSettings


def job_of(index: int = 0, **fields: object) -> TileJob:
    """A job on the small prompt of that index."""
    prompt = small_prompts(index + 1)[index]
    square = {"image": np.asarray(tensor_to_image(prompt.image)), "hole": prompt.mask[0].numpy() > 0.5}
    return TileJob(**{"sample_indices": (0, 1), "seed": 7 + index, "num_inference_steps": 4, **square, **fields})


def new_engine(small_pipeline: Path, **settings: object) -> Engine:
    settings = EngineSettings(**{"device": "cpu", **settings})
    return Engine(PolicyCache(str(small_pipeline), settings), None, settings)


async def answer(engine: Engine, job: TileJob) -> Inpainted:
    return [event async for event in engine.inpaint(job)][-1]
