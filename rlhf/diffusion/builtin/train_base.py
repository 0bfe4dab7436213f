"""Trains a part of the built-in model: `python -m rlhf.diffusion.builtin.train_base --stage vae --out DIR`.

The stage `vae` comes first, then `transformer`. Each call resumes its stage and stops after `--until` updates in all.
All randomness depends on (seed, update) alone, and the encoder never changes, so `vae` may resume after the transformer
has begun.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image

from rlhf.diffusion.builtin.base_data import crop_batch, load_photographs, training_paths
from rlhf.diffusion.builtin.base_denoisers import build_transformer
from rlhf.diffusion.builtin.base_training import TrainingSchedule, train_stage
from rlhf.diffusion.builtin.base_vae import build_vae, start_linear
from rlhf.diffusion.builtin.denoiser_loss import transformer_loss
from rlhf.diffusion.builtin.latent_shards import LatentShards, ShardPlan
from rlhf.diffusion.builtin.phase_start import free_decoder
from rlhf.diffusion.builtin.vae_loss import decoder_loss
from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_torch_save

PEAK_LR = {"vae": 2e-4, "transformer": 5e-4}
"""Learning rate after the warm-up, by stage."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="train_base", description=__doc__)
    parser.add_argument("--stage", choices=sorted(PEAK_LR), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of states, logs and encoded crops")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--until", type=int, required=True, help="total number of updates of the stage")
    parser.add_argument("--start", type=Path, help="pipeline folder with the initial weights")
    parser.add_argument("--peak-lr", type=float, help="learning rate after warm-up")
    parser.add_argument("--decay-from", type=int, help="update at which the learning rate begins to fall")
    parser.add_argument("--decay-to", type=int, help="update at which it has fallen to 2 %%; default: --until")
    parser.add_argument("--vae-batch", type=int, default=8, help="crops in a batch of the stage vae")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    photographs = load_photographs(training_paths(options.images))
    schedule = TrainingSchedule(
        until=options.until,
        peak_lr=options.peak_lr or PEAK_LR[options.stage],
        decay_from=options.decay_from,
        decay_to=options.decay_to,
        average=0.998 if options.stage == "vae" else 0.9995,
        weight_decay=0.0 if options.stage == "vae" else 0.01,
    )
    if options.stage == "vae":
        train_vae(photographs, schedule, options)
    else:
        train_transformer(photographs, schedule, options)


def train_vae(photographs: list[Image.Image], schedule: TrainingSchedule, options: argparse.Namespace) -> None:
    """Trains the decoder, from the linear start or from `--start`."""
    vae = start_vae(photographs, options.out, options.start, options.seed).requires_grad_(False)
    free_decoder(vae.decoder)

    def loss_of(update: int) -> torch.Tensor:
        """Returns the loss of an update, on a batch that depends on the seed and the update alone."""
        rng = np.random.default_rng([options.seed, 1, update])
        images = crop_batch(photographs, rng, options.vae_batch, 64)
        return decoder_loss(vae, images, _generator(options.seed, update))

    first = started_at(options.start, "vae")
    train_stage(
        vae,
        loss_of,
        schedule,
        state_path=state_path(options.out, "vae"),
        log_path=log_path(options.out, "vae"),
        first=first,
    )


def train_transformer(photographs: list[Image.Image], schedule: TrainingSchedule, options: argparse.Namespace) -> None:
    """Trains the denoiser on latents of the frozen encoder."""
    stage = options.stage
    vae = start_vae(photographs, options.out, options.start, options.seed).eval().requires_grad_(False)
    torch.manual_seed(options.seed)
    if options.start and (options.start / stage).is_dir():
        module = FluxTransformer2DModel.from_pretrained(options.start / stage, torch_dtype=torch.float32)
    else:
        module = build_transformer()
    loss = transformer_loss(module, vae)
    plan = ShardPlan(folder=options.out / "latents", seed=options.seed)
    shards = LatentShards(plan, vae.to(memory_format=torch.channels_last), photographs)

    def loss_of(update: int) -> torch.Tensor:
        """Returns the loss of an update, on a batch that depends on the seed and the update alone."""
        generator = _generator(options.seed, update)
        return loss(shards.batch(update, generator), generator)

    first = started_at(options.start, stage)
    train_stage(
        module,
        loss_of,
        schedule,
        state_path=state_path(options.out, stage),
        log_path=log_path(options.out, stage),
        first=first,
    )


def start_vae(photographs: list[Image.Image], out: Path, start: Path | None, seed: int) -> AutoencoderKL:
    """Returns the VAE before training, from the folder `start` or linear; `out` keeps it for all stages."""
    path = out / "vae_start.pt"
    vae = build_vae()
    if path.is_file():
        vae.load_state_dict(torch.load(path))
    elif start is not None:
        vae = AutoencoderKL.from_pretrained(start / "vae", torch_dtype=torch.float32)
        atomic_torch_save(vae.state_dict(), path)
    else:
        torch.manual_seed(seed)
        vae = build_vae()
        start_linear(vae, crop_batch(photographs, np.random.default_rng([seed, 2]), 1024, 64))
        atomic_torch_save(vae.state_dict(), path)
    return vae


def state_path(out: Path, stage: str) -> Path:
    """Returns the path of a stage's state."""
    return out / f"{stage}_state.pt"


def log_path(out: Path, stage: str) -> Path:
    """Returns the path of a stage's log."""
    return out / f"{stage}.jsonl"


def started_at(start: Path | None, stage: str) -> int:
    """Returns the number of updates behind the weights in the folder `start`; further updates draw new crops."""
    if start is None:
        return 0
    record = start / "training.json"
    if not record.is_file():
        raise UserError(f"{start}: no training.json; name a folder that export_base wrote")
    return int(json.loads(record.read_text())["updates"].get(stage, 0))


def _generator(seed: int, update: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + update)


if __name__ == "__main__":
    main()
