"""Trains the built-in model `tiny` on folders of photographs: first the VAE, then the denoiser."""

from dataclasses import dataclass
from pathlib import Path

from rlhf.diffusion.builtin.export_base import export
from rlhf.diffusion.builtin.train_base import main as train_stage


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of `rlhf pretrain`."""

    images: tuple[Path, ...]
    """Folders of photographs."""
    out: Path
    """Folder that receives the pipeline."""
    vae_updates: int = 2000
    """Number of optimizer steps of the VAE's decoder."""
    updates: int = 6000
    """Number of optimizer steps of the denoiser."""
    seed: int = 0
    """Seed of weights, crops, holes and noise."""


def pretrain(config: PretrainConfig) -> Path:
    """Trains from scratch, or resumes an interrupted run; returns the pipeline folder.

    The states of the training stay in its folder `training`, so that more updates can follow.
    """
    training = config.out / "training"
    for stage, updates in (("vae", config.vae_updates), ("transformer", config.updates)):
        options = {"--stage": stage, "--until": updates, "--out": training, "--seed": config.seed}
        words = [str(word) for option in options.items() for word in option]
        train_stage([*words, "--images", *map(str, config.images)])
    export(training, config.out)
    return config.out
