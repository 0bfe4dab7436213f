"""The engine: a job's images are those of the one denoising loop, whoever else is in the batch."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from small_engine import answer, job_of, new_engine
from small_parts import SIZE_PX, save_moved_policy, save_small_reward, small_prompts
from transformers import CLIPConfig, CLIPImageProcessor

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.noise import noise_like
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.errors import UserError
from rlhf.promotion.catalogue import ServedPolicy, describe_policy
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.open_reward import open_reward
from rlhf.storage.images import tensor_to_image
from serve.engine.engine import Engine, warm_up
from serve.engine.jobs import Inpainted, Partial, TileJob
from serve.engine.policy_cache import PolicyCache
from serve.settings import EngineSettings

ROUNDING = 1
"""Levels of 255 by which an image may differ if it was denoised in a batch of another size."""


@pytest.fixture(scope="module")
def policies(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ServedPolicy]:
    """Two LoRA policies and a whole UNet."""
    folder = tmp_path_factory.mktemp("policies")
    kinds = ("lora", "lora", "full")
    return [
        describe_policy(save_moved_policy(small_pipeline, folder / str(i), version=i + 1, trainable=kind))
        for i, kind in enumerate(kinds)
    ]


async def collect(events: AsyncIterator[Partial | Inpainted]) -> list[Partial | Inpainted]:
    return [event async for event in events]


def run_together(engine: Engine, *jobs: TileJob) -> list[Inpainted]:
    async def gather() -> list[Inpainted]:
        return await asyncio.gather(*(answer(engine, job) for job in jobs))

    return asyncio.run(gather())


def reference(small_pipeline: Path, job: TileJob) -> np.ndarray:
    """The same samples by the loop that training and evaluation run."""
    policy = load_policy(ModelConfig(path=str(small_pipeline)), job.policy.folder)
    plan = RolloutPlan(num_inference_steps=job.num_inference_steps, eta=0.0, stochastic_steps=frozenset())
    prompts = [p for p in small_prompts(4) if np.array_equal(p.mask[0].numpy() > 0.5, job.hole)]
    object.__setattr__(prompts[0], "prompt_id", str(job.seed))
    images = rollout(policy, prompts[:1], plan, sample_indices=job.sample_indices, seed_key=("serve",)).images
    return np.stack([np.asarray(tensor_to_image(image)) for image in images])


def levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_a_job_alone_is_bit_for_bit_what_the_rollout_paints(small_pipeline: Path, policies: list[ServedPolicy]):
    engine = new_engine(small_pipeline)
    for policy in (ServedPolicy(), policies[2]):
        job = job_of(policy=policy)
        assert np.array_equal(run_together(engine, job)[0].images, reference(small_pipeline, job))


@pytest.mark.parametrize("batching", ["continuous", "whole"])
def test_jobs_of_other_steps_policies_and_sizes_share_a_batch_and_paint_what_they_paint_alone(
    small_pipeline: Path, policies: list[ServedPolicy], batching: str
):
    engine = new_engine(small_pipeline, batching=batching, max_batch_images=16)
    jobs = [
        job_of(0, policy=policies[0]),
        job_of(1, policy=policies[1], num_inference_steps=6, sample_indices=(0,)),
        job_of(2, num_inference_steps=2, sample_indices=(2,)),
        job_of(3, policy=policies[2], sample_indices=(0, 1, 2)),
    ]
    answers = run_together(engine, *jobs)
    assert answers[0].batch_images > 2
    for job, done in zip(jobs, answers, strict=True):
        assert levels_apart(done.images, reference(small_pipeline, job)) <= ROUNDING
    (base,) = run_together(engine, job_of(0))
    assert levels_apart(base.images, answers[0].images) > ROUNDING


def test_sample_i_is_the_same_whatever_the_others_are(small_pipeline: Path):
    engine = new_engine(small_pipeline)
    both, second = run_together(engine, job_of(), job_of(sample_indices=(1,)))
    assert levels_apart(both.images[1:], second.images) <= ROUNDING
    assert levels_apart(both.images[:1], second.images) > ROUNDING


def test_guidance_is_that_of_the_diffusers_pipeline(small_pipeline: Path, monkeypatch: pytest.MonkeyPatch):
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(small_pipeline, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    # The pipeline draws the known pixels' latents from the VAE's posterior; the rollout takes its mode.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    job = job_of(prompt="a red sofa", guidance_scale=5.0, sample_indices=(0,))
    (done,) = run_together(new_engine(small_pipeline), job)
    expected = pipeline(
        prompt="a red sofa",
        negative_prompt="",
        image=Image.fromarray(job.image),
        mask_image=Image.fromarray(job.hole),
        height=SIZE_PX,
        width=SIZE_PX,
        guidance_scale=5.0,
        num_inference_steps=4,
        latents=noise_like((4, 8, 8), "serve", str(job.seed), 0, "start")[None],
        output_type="np",
    ).images[0]
    inside = np.abs(expected * 255 - done.images[0])[job.hole]
    (without,) = run_together(new_engine(small_pipeline), job_of(sample_indices=(0,)))
    assert inside.max() < 2
    assert levels_apart(done.images, without.images) > 2


def test_guidance_of_one_job_leaves_its_neighbour_alone(small_pipeline: Path):
    engine = new_engine(small_pipeline)
    plain, guided = job_of(0), job_of(1, prompt="a red sofa", guidance_scale=3.0)
    together = run_together(engine, plain, guided)
    for job, done in zip((plain, guided), together, strict=True):
        assert levels_apart(done.images, run_together(engine, job)[0].images) <= ROUNDING


def test_estimates_come_before_the_answer_and_keep_known_pixels(small_pipeline: Path):
    job = job_of(partial_images=2)

    *partials, last = asyncio.run(collect(new_engine(small_pipeline).inpaint(job)))
    assert [p.index for p in partials] == [0, 1]
    assert isinstance(last, Inpainted)
    for event in (*partials, last):
        assert np.array_equal(event.images[:, ~job.hole], np.repeat(job.image[None][:, ~job.hole], 2, axis=0))
    assert levels_apart(partials[0].images, last.images) > 0


def test_clean_and_noise_mix_to_the_latents_that_they_were_split_from(small_pipeline: Path):
    policy = load_policy(ModelConfig(path=str(small_pipeline)))
    schedule = policy.family.schedule(4, (8, 8))
    latents, output, index = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.arange(4)
    clean, noise = schedule._split(output, latents, schedule.alphas_cumprod.view(-1, 1, 1, 1))
    assert torch.equal(clean, schedule.predicted_clean(output, latents, index))
    alpha = schedule.alphas_cumprod.view(-1, 1, 1, 1)
    torch.testing.assert_close(alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, latents, atol=1e-4, rtol=1e-4)
    mean = schedule.transition(output, latents, index, 0.0).mean
    after = schedule.next_alphas_cumprod.view(-1, 1, 1, 1)
    torch.testing.assert_close(after.sqrt() * clean + (1 - after).sqrt() * noise, mean, atol=1e-5, rtol=1e-5)


def test_a_client_that_leaves_frees_its_place_between_two_steps(small_pipeline: Path):
    engine = new_engine(small_pipeline, max_batch_images=2)

    async def leave() -> tuple[int, Inpainted]:
        long = engine.inpaint(job_of(0, num_inference_steps=100, partial_images=3))
        assert isinstance(await anext(long), Partial)
        assert len(engine._running) == 1
        await long.aclose()
        done = await answer(engine, job_of(1))
        return len(engine._running), done

    _, done = asyncio.run(asyncio.wait_for(leave(), 20))
    assert done.batch_images == 2


def test_a_newcomer_joins_between_steps_or_waits_as_the_setting_says(small_pipeline: Path):
    def overtakes(batching: str) -> bool:
        engine = new_engine(small_pipeline, batching=batching, max_batch_images=4)

        async def race() -> bool:
            slow = engine.inpaint(job_of(0, num_inference_steps=60, partial_images=3))
            assert isinstance(await anext(slow), Partial)
            rest = asyncio.create_task(collect(slow))
            await answer(engine, job_of(1, num_inference_steps=2))
            return not rest.done()

        return asyncio.run(race())

    assert overtakes("continuous")
    assert not overtakes("whole")


def test_a_policy_that_does_not_load_fails_its_own_request_alone(
    small_pipeline: Path, policies: list[ServedPolicy], tmp_path: Path
):
    engine = new_engine(small_pipeline)
    broken = ServedPolicy(folder=tmp_path, version="3-aaaaaaaa")
    renamed = policies[0].model_copy(update={"version": "3-aaaaaaaa"})

    async def gather() -> list[object]:
        jobs = [job_of(policy=broken), job_of(policy=renamed), job_of()]
        return await asyncio.gather(*(answer(engine, job) for job in jobs), return_exceptions=True)

    missing, changed, fine = asyncio.run(gather())
    assert isinstance(missing, UserError)
    assert "manifest.json" in str(missing)
    assert "not 3-aaaaaaaa" in str(changed)
    assert isinstance(fine, Inpainted)


def test_policies_beyond_the_limit_are_dropped_but_not_while_they_paint(
    small_pipeline: Path, policies: list[ServedPolicy]
):
    engine = new_engine(small_pipeline, max_policies=1)
    jobs = [job_of(i, policy=policy, num_inference_steps=3 + i) for i, policy in enumerate(policies)]
    for job, done in zip(jobs, run_together(engine, *jobs), strict=True):
        assert levels_apart(done.images, reference(small_pipeline, job)) <= ROUNDING
    for job in (*jobs, jobs[0]):
        (done,) = run_together(engine, job)
        assert levels_apart(done.images, reference(small_pipeline, job)) <= ROUNDING
    assert list(engine._cache._loaded) == [policies[0].version]


def test_rewards_and_bounds_are_those_of_the_reward_model(small_pipeline: Path, tmp_path: Path):
    reward = load_reward(save_small_reward(tmp_path / "reward"))
    settings = EngineSettings(device="cpu")
    engine = Engine(PolicyCache(str(small_pipeline), settings), reward, settings)
    job = job_of()
    (done,) = run_together(engine, job)
    images = torch.from_numpy(done.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = reward.score(images, torch.from_numpy(job.hole).float().expand(2, 1, -1, -1))
    for column in ("reward", "lower", "upper"):
        found = [getattr(score, column) for score in done.scores]
        assert found == pytest.approx(getattr(expected, column).tolist(), abs=1e-3)


@pytest.mark.parametrize("kinds", [("model", "seam"), ("seam",)])
def test_the_sum_that_a_policy_climbed_ranks_its_samples(small_pipeline: Path, tmp_path: Path, kinds: tuple[str, ...]):
    save_small_reward(tmp_path / "reward")
    entries = "".join(f"- {{kind: {kind}, std: 0.5}}\n" for kind in kinds)
    (tmp_path / "config.yaml").write_text(f"rewards:\n{entries}")
    reward, settings = open_reward(tmp_path, torch.device("cpu")), EngineSettings(device="cpu")
    engine = Engine(PolicyCache(str(small_pipeline), settings), reward, settings)
    job = job_of(prompt="a hill")
    (done,) = run_together(engine, job)
    images = torch.from_numpy(done.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = reward.score(images, torch.from_numpy(job.hole).float().expand(2, 1, -1, -1), ["a hill"] * 2)
    assert [score.reward for score in done.scores] == pytest.approx(expected.reward.tolist(), abs=1e-2)
    if "model" in kinds:
        assert [score.lower for score in done.scores] == pytest.approx(expected.lower.tolist(), abs=1e-2)
    else:
        assert [score.lower for score in done.scores] == [None, None], "the seam alone bounds nothing"


def test_warm_up_paints_every_size_of_batch(small_pipeline: Path):
    settings = EngineSettings(device="cpu", max_batch_images=3)
    sizes: list[int] = []

    def make(size: int) -> TileJob:
        sizes.append(size)
        return job_of(sample_indices=tuple(range(size)), num_inference_steps=1)

    warm_up(PolicyCache(str(small_pipeline), settings), None, settings, make)
    assert sorted(set(sizes)) == [1, 2, 3]


@pytest.mark.parametrize("is_flagged", [True, False])
def test_the_safety_checker_of_a_pipeline_is_asked_about_every_image(
    small_pipeline: Path, tmp_path: Path, is_flagged: bool
):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = sizes | {"image_size": SIZE_PX, "patch_size": 8, "projection_dim": 16}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    # A cosine is above -2 always, and above 2 never.
    checker.concept_embeds_weights.data.fill_(-2.0 if is_flagged else 2.0)
    checker.special_care_embeds_weights.data.fill_(2.0)
    side = {"height": SIZE_PX, "width": SIZE_PX}
    features = CLIPImageProcessor(size={"shortest_edge": SIZE_PX}, crop_size=side)
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(
        small_pipeline, safety_checker=checker, feature_extractor=features
    )
    pipeline.save_pretrained(tmp_path / "guarded")
    (done,) = run_together(new_engine(tmp_path / "guarded"), job_of())
    assert done.unsafe == (is_flagged, is_flagged)
    assert run_together(new_engine(small_pipeline), job_of())[0].unsafe == ()


@pytest.mark.slow  # 1-2 minutes of compiling
def test_a_compiled_policy_has_a_unet_of_its_own_and_paints_the_same(
    small_pipeline: Path, policies: list[ServedPolicy]
):
    jobs = [job_of(0), job_of(1, policy=policies[0]), job_of(2, policy=policies[1])]
    for job, done in zip(jobs, run_together(new_engine(small_pipeline, compile=True), *jobs), strict=True):
        assert levels_apart(done.images, reference(small_pipeline, job)) <= ROUNDING
