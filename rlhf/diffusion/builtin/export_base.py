"""Writes the pipeline of a training that may be running: `python -m rlhf.diffusion.builtin.export_base STATE OUT`.

OUT is a diffusers folder with the averaged weights in half precision. The training replaces its states as a whole, so
reading them disturbs nothing.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxFillPipeline

from rlhf.diffusion.builtin.base_denoisers import build_transformer, transformer_pipeline
from rlhf.diffusion.builtin.base_vae import build_vae
from rlhf.diffusion.builtin.train_base import state_path
from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write_json


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


def trained_pipeline(folder: Path) -> tuple[FluxFillPipeline, dict[str, int]]:
    """Returns the pipeline in float32, and the number of updates of each part."""
    vae, vae_updates = trained_vae(folder)
    module = build_transformer().eval()
    updates = {"vae": vae_updates, "transformer": averaged_weights(module, state_path(folder, "transformer"))}
    return transformer_pipeline(vae, module), updates


def export(folder: Path, out: Path) -> None:
    """Writes the pipeline, with `training.json` beside it."""
    pipeline, updates = trained_pipeline(folder)
    pipeline.vae.half()
    pipeline.transformer.half()
    pipeline.save_pretrained(out)
    atomic_write_json(out / "training.json", {"updates": updates})


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="export_base", description=__doc__)
    parser.add_argument("state", type=Path, help="folder that train_base was given as --out")
    parser.add_argument("out", type=Path, help="folder that receives the pipeline")
    options = parser.parse_args(arguments)
    export(options.state, options.out)


if __name__ == "__main__":
    main()
