"""Requests of every family join one batch: prompts, guidance and LoRA policies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from family_cases import CASES
from family_painting import prompt_of
from family_run import build_run

from rlhf.diffusion.families.blending import known_picture
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.promotion.catalogue import ServedPolicy, describe_policy
from rlhf.storage.images import image_to_tensor, mask_to_tensor, tensor_to_image
from serve.engine.jobs import Inpainted, TileJob
from serve.engine.policy_cache import PolicyCache
from serve.engine.running_batch import advance, finish, start_jobs
from serve.settings import EngineSettings

QUICK = ("QwenImageEdit",)
MULTISTEP = "FluxFill of third order"


def job(policy: ServedPolicy, guidance_scale: float | None) -> TileJob:
    prompt = prompt_of(64, 64, seed=1)
    return TileJob(
        policy=policy,
        image=known_picture(prompt).permute(1, 2, 0).numpy(),
        hole=prompt.mask[0].numpy() > 0.5,
        sample_indices=(0,),
        seed=3,
        num_inference_steps=3,
        prompt="a cat",
        guidance_scale=guidance_scale,
    )


def paint(cache: PolicyCache, jobs: list[TileJob]) -> list[np.ndarray]:
    running = start_jobs(cache, [cache.take(one.policy, ()) for one in jobs], jobs)
    while not running[0].is_done:
        advance(cache, running)
    answers = finish(cache, None, running)
    assert all(isinstance(answer, Inpainted) for answer in answers)
    return [answer.images[0].astype(int) for answer in answers if isinstance(answer, Inpainted)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES])
def test_a_prompt_its_guidance_and_a_lora_policy_share_a_batch_as_if_alone(name: str, tmp_path: Path) -> None:
    build_run(name, tmp_path)
    cache = PolicyCache(str(tmp_path / "model"), EngineSettings(device="cpu"))
    base, lora, unguided = ServedPolicy(), describe_policy(tmp_path / "policy"), cache.base.family.unguided_scale
    scales = (None, unguided, 3.0) if CASES[name].guided else (None, unguided)
    jobs = [job(policy, scale) for policy in (base, lora) for scale in scales]
    alone, together = [paint(cache, [one])[0] for one in jobs], paint(cache, jobs)
    for number, image in enumerate(together):
        assert np.abs(image - alone[number]).max() <= 1, "rounding"
        others = [other for place, other in enumerate(together) if place != number]
        assert all((image != other).any() for other in others), "prompt, scale and policy each change the image"


def test_jobs_at_other_steps_of_third_order_paint_what_a_rollout_paints(tmp_path: Path) -> None:
    case = CASES[MULTISTEP]
    pipeline = case.build()
    pipeline.save_pretrained(tmp_path)
    cache = PolicyCache(str(tmp_path), EngineSettings(device="cpu"))
    assert cache.base.family.schedule(5, (8, 8)).solver_order == 3
    jobs = [replace(job(ServedPolicy(), None), num_inference_steps=steps, prompt="") for steps in (5, 3)]
    first, second = (start_jobs(cache, [cache.take(one.policy, ())], [one])[0] for one in jobs)
    advance(cache, [first])
    while not second.is_done:
        advance(cache, [one for one in (first, second) if not one.is_done])
    while not first.is_done:
        advance(cache, [first])
    for done, one in zip((first, second), jobs, strict=True):
        prompt = replace(prompt_of(64, 64, seed=1), prompt_id=str(one.seed))
        prompt = replace(prompt, image=image_to_tensor(one.image), mask=mask_to_tensor(one.hole))
        plan = RolloutPlan(num_inference_steps=one.num_inference_steps, eta=0.0, stochastic_steps=frozenset())
        painted = rollout(cache.base, [prompt], plan, sample_indices=[0], seed_key=("serve",)).images[0]
        answer = finish(cache, None, [done])[0]
        assert isinstance(answer, Inpainted)
        expected = np.asarray(tensor_to_image(painted)).astype(int)
        assert np.abs(answer.images[0].astype(int) - expected).max() <= 1, "rounding"
