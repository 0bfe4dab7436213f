"""Schedulers that a pipeline's folder can name: reproduced, replaced with a word, or refused by name."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from small_networks import build_scheduler
from small_parts import small_config, small_prompts
from small_schedulers import copy_with_scheduler, denoise_as_diffusers

from rlhf.alignment.trained_steps import check_trained_steps
from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.denoising import denoise
from rlhf.diffusion.noise import noise_like
from rlhf.diffusion.policy import load_policy, plan_steps
from rlhf.diffusion.steps.ddim import make_schedule
from rlhf.errors import UserError

SHAPE = (2, 4, 5, 6)


def draw(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def ddim(**options: Any) -> DDIMScheduler:
    return DDIMScheduler.from_config(build_scheduler().config, **options)


@pytest.mark.parametrize("num_inference_steps", [1, 3, 7, 10, 600])
@pytest.mark.parametrize(
    "options",
    [
        {"steps_offset": 0},
        {"steps_offset": 3, "set_alpha_to_one": True},
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.3, "prediction_type": "epsilon"},
        {"clip_sample": True, "prediction_type": "sample"},
        {"rescale_betas_zero_snr": True},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"},
        {"num_train_timesteps": 777, "beta_schedule": "linear"},
    ],
    ids=str,
)
def test_leading_steps_are_diffusers_own(options: dict[str, Any], num_inference_steps: int) -> None:
    scheduler = ddim(**options)
    schedule = make_schedule(scheduler, num_inference_steps)
    output, latents = draw(0), draw(1)
    for step, timestep in enumerate(scheduler.timesteps):
        expected = scheduler.step(output, timestep, latents, eta=0.7, variance_noise=draw(2)).prev_sample
        ours = schedule.transition(output, latents, torch.full((2,), step), 0.7)
        torch.testing.assert_close(ours.mean + ours.std_dev_t * draw(2), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_each_step_ends_at_the_level_that_the_next_call_is_told(spacing: str) -> None:
    for offset, count in itertools.product((0, 1, 5), (2, 7, 10, 28, 61, 122, 300, 995)):
        scheduler = ddim(timestep_spacing=spacing, steps_offset=offset)
        schedule = make_schedule(scheduler, count)
        assert len(schedule.timesteps) == count
        assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod[schedule.timesteps])
        assert torch.equal(schedule.next_alphas_cumprod[:-1], scheduler.alphas_cumprod[schedule.timesteps[1:]])


@pytest.mark.parametrize(("spacing", "count"), [("linspace", 10), ("linspace", 28), ("trailing", 8), ("trailing", 7)])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_unequal_steps_are_those_of_diffusers_euler_solver(spacing: str, count: int, prediction_type: str) -> None:
    """Euler's step in x / sqrt(alpha) is DDIM's, and its levels are those of its timesteps."""
    scheduler = ddim(prediction_type=prediction_type, timestep_spacing=spacing, set_alpha_to_one=True)
    euler = EulerDiscreteScheduler.from_config(scheduler.config, timestep_spacing=spacing)
    euler.set_timesteps(count)
    schedule = make_schedule(scheduler, count)
    assert schedule.timesteps.tolist() == euler.timesteps.tolist()
    ours = draw(0)
    theirs = ours / schedule.alphas_cumprod[0].sqrt()
    for step, timestep in enumerate(euler.timesteps):
        scaled = euler.scale_model_input(theirs, timestep)
        torch.testing.assert_close(scaled, ours, rtol=1e-3, atol=1e-3)
        theirs = euler.step(0.7 * scaled.tanh(), timestep, theirs).prev_sample
        ours = schedule.transition(0.7 * ours.tanh(), ours, torch.full((2,), step), 0.0).mean
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [1000, 1001, 5000])
def test_more_steps_than_timesteps_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"{count} denoising steps: the model's scheduler has 1000 timesteps"):
        make_schedule(ddim(), count)


@pytest.mark.parametrize(
    "options",
    [
        {"steps_offset": 0, "clip_sample": False},
        {"clip_sample": True},
        {"clip_sample": False, "timestep_spacing": "trailing"},
        {"clip_sample": False, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"clip_sample": False, "set_alpha_to_one": False},
    ],
    ids=str,
)
def test_a_folder_is_sampled_as_its_own_pipeline_does(
    small_pipeline: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = copy_with_scheduler(small_pipeline, tmp_path / "m", "DDIMScheduler", **options)
    policy = load_policy(ModelConfig(path=str(folder)))
    condition, _ = policy.family.encode_prompts(small_prompts(2))
    latents = torch.stack([noise_like(policy.family.latent_shape(*condition.shape[-2:]), i) for i in range(2)])
    expected = denoise_as_diffusers(folder, policy, latents, condition, 5)
    schedule = policy.family.schedule(5, (8, 8))
    for step in range(5):
        index = torch.full((2,), step)
        latents = denoise(lambda x, t: policy.predict(x, t, condition), latents, index, schedule).mean
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("LCMScheduler", {}, "LCMScheduler has other steps"),
        ("TCDScheduler", {}, "TCDScheduler has other steps"),
        ("FlowMatchEulerDiscreteScheduler", {}, "FlowMatchEulerDiscreteScheduler has other steps"),
        ("NoSuchScheduler", {}, "NoSuchScheduler has other steps"),
        ("DDIMScheduler", {"thresholding": True}, "thresholding `True`"),
        ("DDIMScheduler", {"prediction_type": "flow_prediction"}, "prediction_type `flow_prediction`"),
        ("DDIMScheduler", {"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("DDIMScheduler", {"beta_schedule": "odd"}, "odd is not implemented"),
        ("DDIMScheduler", {"timestep_spacing": "odd"}, "timestep_spacing `odd`"),
        ("DDIMScheduler", {"num_train_timesteps": 0}, "DDIMScheduler (cannot be opened|has noise levels)"),
        ("DDIMScheduler", {"trained_betas": [0.1, float("nan")] * 500}, "noise levels that do not fall"),
        ("DDIMScheduler", {"trained_betas": [0.1, -0.1] * 500}, "noise levels that do not fall"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas `True`"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type `continuous`"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "use_lu_lambdas `True`"),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}, "lambda_min_clipped `-5.1`"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas `True`"),
    ],
)
def test_a_schedule_that_is_not_reproduced_is_refused_by_name(
    small_pipeline: Path, tmp_path: Path, kind: str, options: dict[str, Any], named: str
) -> None:
    folder = copy_with_scheduler(small_pipeline, tmp_path / "m", kind, **options)
    for open_model in (lambda config: plan_steps(config, 10), load_policy):
        with pytest.raises(UserError, match=f"{folder}: .*{named}"):
            open_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("kind", "options", "ends_clean"),
    [
        ("PNDMScheduler", {"skip_prk_steps": True}, False),
        ("DDPMScheduler", {"clip_sample": False}, True),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, True),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, True),
        ("DPMSolverMultistepScheduler", {}, True),
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, False),
        ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min"}, False),
        ("HeunDiscreteScheduler", {"clip_sample": True}, True),
    ],
)
def test_a_solver_of_the_same_process_becomes_ddim_with_a_word(
    small_pipeline: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    options: dict[str, Any],
    ends_clean: bool,
) -> None:
    folder = copy_with_scheduler(small_pipeline, tmp_path / "m", kind, **options)
    schedule: Any = plan_steps(ModelConfig(path=str(folder)), 10)
    plan_steps(ModelConfig(path=str(folder)), 10)
    said = [line for line in capsys.readouterr().err.splitlines() if "is replaced by DDIM" in line]
    spacing = options.get("timestep_spacing", "leading" if kind[:4] in ("PNDM", "DDPM") else "linspace")
    assert len(said) == 1, "once"
    assert kind in said[0]
    assert f"timesteps `{spacing}`" in said[0]
    assert (float(schedule.next_alphas_cumprod[-1]) == 1) == ends_clean
    assert schedule.prediction_type == "v_prediction"
    assert schedule.clip_range == (1.0 if options.get("clip_sample") else None)


def test_steps_that_diffusers_ends_at_another_level_are_told(
    small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_with_scheduler(small_pipeline, tmp_path / "m", "DDIMScheduler", timestep_spacing="linspace")
    plan_steps(ModelConfig(path=str(folder)), 10)
    assert "ends at the next timestep's noise level" in capsys.readouterr().err


def test_an_offset_that_the_pipelines_class_replaces_is_told(
    small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_with_scheduler(small_pipeline, tmp_path / "m", "DDIMScheduler", steps_offset=0)
    assert int(plan_steps(ModelConfig(path=str(folder)), 10).timesteps[-1]) == 1
    assert "steps_offset 0 is taken as 1" in capsys.readouterr().err


def test_a_run_that_trains_a_step_without_noise_is_refused_before_it_starts(
    small_pipeline: Path, tmp_path: Path
) -> None:
    folder = copy_with_scheduler(small_pipeline, tmp_path / "m", "DDIMScheduler", set_alpha_to_one=True)
    check_trained_steps(small_config(folder, window_range=3))
    check_trained_steps(small_config(small_pipeline, window_range=4))
    with pytest.raises(UserError, match=r"trains step 4 of 4, which ends without noise.*window_range"):
        check_trained_steps(small_config(folder, window_range=4, updates=8))
    check_trained_steps(small_config(folder, algorithm="prefpaint", updates=20))
