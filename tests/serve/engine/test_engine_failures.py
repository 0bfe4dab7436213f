"""The engine when a policy is broken or a step fails."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from small_engine import answer, job_of, new_engine
from small_parts import save_moved_policy
from small_schedulers import copy_with_scheduler

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.policy import load_policy, make_trainable
from rlhf.diffusion.policy_weights import save_policy
from rlhf.diffusion.trained_weights import trainable_state
from rlhf.errors import UserError
from rlhf.promotion.catalogue import describe_policy
from serve.engine.jobs import Inpainted


def test_truncated_adapter_weights_are_named(small_pipeline: Path, tmp_path: Path):
    folder = save_moved_policy(small_pipeline, tmp_path / "policy", version=1)
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="policy: its weights cannot be read"):
        asyncio.run(answer(new_engine(small_pipeline), job_of(policy=describe_policy(folder))))


def test_a_step_that_fails_fails_its_batch_and_the_engine_goes_on(
    small_pipeline: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = new_engine(small_pipeline)

    async def fail_then_work() -> tuple[object, Inpainted]:
        with monkeypatch.context() as patch:
            patch.setattr("serve.engine.engine.advance", lambda shelf, running: 1 / 0)
            failed = (await asyncio.gather(answer(engine, job_of()), return_exceptions=True))[0]
        return failed, await answer(engine, job_of())

    failed, done = asyncio.run(fail_then_work())
    assert isinstance(failed, ZeroDivisionError)
    assert isinstance(done, Inpainted)


@pytest.mark.parametrize("partial_images", [0, 1])
def test_a_job_that_is_not_finite_fails_alone(small_pipeline: Path, tmp_path: Path, partial_images: int):
    """Finite weights whose products are not, beside the base model in the same batch."""
    policy = load_policy(ModelConfig(path=str(small_pipeline)))
    make_trainable(policy, "lora", rank=4, targets=("conv1", "conv2"), seed=0)
    state = {name: torch.full_like(tensor, 1e25) for name, tensor in trainable_state(policy.network).items()}
    folder = tmp_path / "exploding"
    save_policy(policy.family, state, folder, version=1, trainable="lora", base=str(small_pipeline))
    engine = new_engine(small_pipeline)

    async def both() -> list[object]:
        jobs = [job_of(policy=describe_policy(folder), partial_images=partial_images), job_of(1)]
        return await asyncio.gather(*(answer(engine, job) for job in jobs), return_exceptions=True)

    failed, done = asyncio.run(both())
    assert isinstance(failed, UserError)
    assert f"{folder}: paints numbers that are not finite" in str(failed)
    assert isinstance(done, Inpainted)
    alone = asyncio.run(answer(new_engine(small_pipeline), job_of(1)))
    assert np.abs(done.images.astype(int) - alone.images).max() <= 1


def test_a_job_of_more_steps_than_the_model_has_fails_alone(small_pipeline: Path, tmp_path: Path):
    options = {"num_train_timesteps": 3, "timestep_spacing": "trailing"}
    engine = new_engine(copy_with_scheduler(small_pipeline, tmp_path / "m", "DDIMScheduler", **options))

    async def both() -> list[object]:
        jobs = [job_of(num_inference_steps=4), job_of(1, num_inference_steps=2)]
        return await asyncio.gather(*(answer(engine, job) for job in jobs), return_exceptions=True)

    failed, done = asyncio.run(both())
    assert isinstance(failed, UserError)
    assert "4 denoising steps: the model's scheduler has 3 timesteps" in str(failed)
    assert isinstance(done, Inpainted)
