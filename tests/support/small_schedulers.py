"""A small pipeline whose folder names another scheduler, and diffusers' own way through it."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch

from rlhf.diffusion.policy import Policy


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
