"""Measures base models on photographs: `python -m benchmarks.base_model STATE --images FOLDER`.

It prints JSON: figures of the VAE's round trip, and of fills by the denoisers and by classical methods. STATE is the
folder of a training, which may be running. With --sheets it writes pictures: original, masked or round trip, and fills.
"""

import argparse
import json
import time
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks.base_model import measures
from benchmarks.base_model.fills import fill_classical, fill_transformer
from rlhf.data.holes import FAMILIES, draw_hole
from rlhf.diffusion.builtin.export_base import trained_pipeline, trained_vae
from rlhf.storage.images import blank_hole, decode_image, image_to_tensor, list_photographs, mask_to_tensor, square_crop
from rlhf.storage.images import tensor_to_image as to_image

ORDERS = {"Euler's steps": 1, "third order": 3}
"""Order of the transformer's steps, by name."""


def cut_prompts(folder: Path, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts crops [count, 3, size, size] from the photographs in turn, and draws holes [count, 1, size, size].

    Hole families take turns. The side of a crop is 40 to 100 % of the photograph's short side, as in `rlhf prompts`.
    """
    paths, images, masks = list_photographs(folder), [], []
    for index in range(count):
        path = paths[index % len(paths)]
        rng = np.random.default_rng([zlib.crc32(path.name.encode()), index])
        images.append(image_to_tensor(square_crop(decode_image(path), rng, size=size, scale=(0.4, 1.0))))
        masks.append(mask_to_tensor(draw_hole(list(FAMILIES)[index % len(FAMILIES)], rng, size)))
    return torch.stack(images), torch.stack(masks)


def likeness(filled: torch.Tensor, originals: torch.Tensor, masks: torch.Tensor) -> dict[str, object]:
    """Returns sharpness and band energies in the hole over those of the original; 1 is equally sharp."""
    sharpness = measures.laplacian_sharpness
    return {
        "sharpness": measures.ratio(sharpness(filled, masks), sharpness(originals, masks))[0],
        "gradient_energy": measures.ratio(
            measures.gradient_energy(filled, masks), measures.gradient_energy(originals, masks)
        )[0],
        "bands": measures.ratio(measures.band_energies(filled, masks), measures.band_energies(originals, masks)),
    }


@torch.no_grad()
def measure_round_trip(state: Path, images: torch.Tensor) -> tuple[dict[str, object], torch.Tensor]:
    """Returns figures of the VAE, and the decoded images."""
    vae, updates = trained_vae(state)
    decoded = torch.cat([vae(part).sample for part in images.split(50)]).clamp(-1, 1)
    everywhere = torch.ones_like(images[:, :1])
    figures = {"updates": updates, "psnr_db": round(float(measures.psnr(decoded, images).mean()), 3)}
    return figures | likeness(decoded, images, everywhere), decoded


def measure_fills(
    state: Path, images: torch.Tensor, masks: torch.Tensor, *, steps: int, classical: list[str]
) -> tuple[dict[str, dict[str, object]], dict[str, torch.Tensor]]:
    """Fills every prompt once by each denoiser with a state and each classical method; returns figures and fills.

    `closer_than_NAME` is the share of prompts whose fill is perceptually closer to the original than that of NAME.
    """
    figures: dict[str, dict[str, object]] = {}
    fills = {name: fill_classical(name, images, masks) for name in classical}
    pipeline, updates = trained_pipeline(state)
    for name, order in ORDERS.items():
        started = time.perf_counter()
        parts = zip(images.split(50), masks.split(50), strict=True)
        painted = [fill_transformer(pipeline, a, b, steps, seed, order=order) for seed, (a, b) in enumerate(parts)]
        fills[name] = torch.cat(painted)
        seconds = (time.perf_counter() - started) / len(images)
        figures[name] = {"updates": updates["transformer"], "sample_s": round(seconds, 4)}
    for name, filled in fills.items():
        figures[name] = figures.get(name, {}) | likeness(filled, images, masks)
    if find_spec("efficientnet_lite_pytorch"):
        _compare(figures, fills, images, masks, classical)
    return figures, fills


@torch.no_grad()
def _compare(
    figures: dict[str, dict[str, object]],
    fills: dict[str, torch.Tensor],
    images: torch.Tensor,
    masks: torch.Tensor,
    classical: list[str],
) -> None:
    """Adds perceptual distances, and the share of prompts at which a denoiser is closer than a classical method."""
    distance = measures.PerceptualDistance()
    distances = {}
    for name, filled in fills.items():
        parts = zip(filled.split(50), images.split(50), masks.split(50), strict=True)
        distances[name] = torch.cat([distance(*part) for part in parts])
        figures[name]["distance"] = round(float(distances[name].mean()), 4)
    for sampler in ORDERS:
        for name in classical:
            closer = (distances[sampler] < distances[name]).float().mean()
            figures[sampler][f"closer_than_{name}"] = round(float(closer), 3)


def save_sheet(columns: list[torch.Tensor], path: Path, *, rows: int, scale: int = 3) -> None:
    """Writes a picture with a row per prompt and a column per tensor [N, 3, H, W], enlarged without smoothing."""
    sheet = torch.cat([torch.cat([column[i] for column in columns], dim=2) for i in range(rows)], dim=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2)).save(path)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="measure_base", description=__doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="photographs that no model was trained on")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--classical", nargs="*", default=["biharmonic"], help="biharmonic, telea, navier-stokes")
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    images, masks = cut_prompts(options.images, options.prompts, options.size)
    vae_figures, decoded = measure_round_trip(options.state, images)
    figures, fills = measure_fills(options.state, images, masks, steps=options.steps, classical=options.classical)
    print(json.dumps({"vae": vae_figures} | figures, indent=2))
    if options.sheets:
        rows = min(12, len(images))
        save_sheet([images, decoded], options.sheets / "round_trips.png", rows=rows)
        save_sheet([blank_hole(images, masks), *fills.values(), images], options.sheets / "fills.png", rows=rows)
        print("columns of fills.png:", "masked", *fills, "original")


if __name__ == "__main__":
    main()
