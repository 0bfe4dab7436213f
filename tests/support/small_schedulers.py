"""Schedules of each prediction and step rule; a pipeline with another scheduler, and diffusers' own way through it."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from small_networks import build_scheduler

from rlhf.diffusion.policy import Policy
from rlhf.diffusion.steps.ddim import make_schedule
from rlhf.diffusion.steps.flow_matching import make_flow_schedule
from rlhf.diffusion.steps.step_rule import Schedule


def ddim(prediction_type: str) -> Schedule:
    return make_schedule(
        diffusers.DDIMScheduler.from_config(build_scheduler().config, prediction_type=prediction_type), 10
    )


def flow(rule: str) -> Schedule:
    return make_flow_schedule(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), 10, tokens=16, rule=rule)


SCHEDULES = {name: lambda name=name: ddim(name) for name in ("epsilon", "v_prediction", "sample")} | {
    name: lambda name=name: flow(name) for name in ("ddim", "flow_sde", "dance")
}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def copy_with_scheduler(pipeline: Path, folder: Path, kind: str, **options: Any) -> Path:
    """A copy whose scheduler is of class `kind`, with the small pipeline's training schedule and `options`."""
    shutil.copytree(pipeline, folder)
    place, index = folder / "scheduler" / "scheduler_config.json", folder / "model_index.json"
    before = json.loads(place.read_text())
    kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset")
    place.write_text(json.dumps({name: before[name] for name in kept} | {"_class_name": kind} | options))
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", kind]}))
    return folder


@torch.no_grad()
def denoise_as_diffusers(folder: Path, policy: Policy, noise: torch.Tensor, condition: torch.Tensor, steps: int) -> Any:
    """The finished latents of diffusers' pipeline class, with its own scheduler and network."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    scheduler, latents = pipeline.scheduler, noise
    scheduler.set_timesteps(steps)
    text = policy.text.embedding.expand(len(noise), -1, -1)
    for timestep in scheduler.timesteps:
        inputs = torch.cat([scheduler.scale_model_input(latents, timestep), condition], dim=1)
        output = pipeline.unet(inputs, timestep, encoder_hidden_states=text).sample
        latents = scheduler.step(output, timestep, latents).prev_sample
    return latents
