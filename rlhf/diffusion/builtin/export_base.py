"""Writes pipelines from a training that may be running: `python -m rlhf.diffusion.builtin.export_base STATE OUT`.

OUT/unet and OUT/transformer are diffusers folders with the averaged weights in half precision and the logs of their
parts. The training replaces its states as a whole, so reading them disturbs nothing.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from rlhf.diffusion.builtin.base_denoisers import build_transformer, build_unet, transformer_pipeline, unet_pipeline
from rlhf.diffusion.builtin.base_vae import build_vae
from rlhf.diffusion.builtin.train_base import log_path, state_path
from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write_json

DENOISERS: dict[str, tuple[Callable, Callable]] = {
    "unet": (build_unet, unet_pipeline),
    "transformer": (build_transformer, transformer_pipeline),
}
"""Functions that build a denoiser, and the pipeline around it, by stage."""


def averaged_weights(module: torch.nn.Module, state: Path) -> int:
    """Loads the moving average of a stage's weights into `module`; returns the number of its updates.

    Raises UserError if the stage has no state yet.
    """
    if not state.is_file():
        raise UserError(f"{state}: not there yet; the stage has saved no state")
    record = torch.load(state, mmap=True)
    module.load_state_dict(record["averaged"])
    return int(record["update"])


def trained_vae(folder: Path) -> tuple[AutoencoderKL, int]:
    """Returns the VAE in a training's state folder, and the number of its updates: 0 for the linear start."""
    vae = build_vae().eval()
    if state_path(folder, "vae").is_file():
        return vae, averaged_weights(vae, state_path(folder, "vae"))
    vae.load_state_dict(torch.load(folder / "vae_start.pt"))
    return vae, 0


def trained_pipeline(folder: Path, stage: str) -> tuple[DiffusionPipeline, dict[str, int]]:
    """Returns the pipeline of one denoiser in float32, and the number of updates of each part."""
    build, around = DENOISERS[stage]
    vae, vae_updates = trained_vae(folder)
    module = build().eval()
    updates = {"vae": vae_updates, stage: averaged_weights(module, state_path(folder, stage))}
    return around(vae, module), updates


def export(folder: Path, out: Path, stages: list[str]) -> None:
    """Writes the pipelines of `stages`, each with `training.json` and the logs of its parts."""
    for stage in stages:
        pipeline, updates = trained_pipeline(folder, stage)
        for name in ("vae", stage):
            getattr(pipeline, name).half()
        pipeline.save_pretrained(out / stage)
        for name in ("vae", stage):
            if log_path(folder, name).is_file():
                shutil.copyfile(log_path(folder, name), out / stage / f"{name}.jsonl")
        atomic_write_json(out / stage / "training.json", {"updates": updates})
        size = sum(path.stat().st_size for path in (out / stage).rglob("*") if path.is_file())
        print(json.dumps({"pipeline": stage, "updates": updates, "megabytes": round(size / 1e6, 2)}))


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="export_base", description=__doc__)
    parser.add_argument("state", type=Path, help="folder that train_base was given as --out")
    parser.add_argument("out", type=Path, help="folder that receives the pipelines")
    parser.add_argument("--stages", nargs="+", choices=sorted(DENOISERS), default=sorted(DENOISERS))
    options = parser.parse_args(arguments)
    export(options.state, options.out, options.stages)


if __name__ == "__main__":
    main()
