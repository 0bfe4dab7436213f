"""Trains a probe: `python -m benchmarks.probes annotators --photographs FOLDER`, or `judge`.

It writes the probe into rlhf/data/networks/weights, for the annotators with their network's weights in half precision,
and prints what the probe does on photographs that were left out, by kind of fill.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.probes.fills import degrade, draw_places
from benchmarks.probes.painters import paint
from rlhf.data.networks.hole_features import Maps, describe_hole
from rlhf.data.networks.mobilenet_v2 import MobileNetV2Maps
from rlhf.data.networks.package_weights import MOBILENET_V2
from rlhf.data.networks.probe import Probe, fit_probe
from rlhf.data.networks.resnet50 import open_resnet50
from rlhf.data.networks.weights import FOLDER
from rlhf.data.photographs import photographs_of
from rlhf.storage.images import composite, decode_image

HARDLY = 0.04
"""Mean absolute difference in the hole, of 2, below which a fill gets marks between its own and the original's."""
LEFT_OUT = 5
"""Every so many-th photograph is left out to choose the penalty and to report on."""
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
BATCH = 64
CROSSED = 12
"""Steps of gradient ascent on pixels that make the fills which fool the first probe."""


class Examples:
    """Fills as uint8 pictures, masks, marks, and the photographs they are of."""

    def __init__(self, folder: Path, purpose: str, count: int, seed: int) -> None:
        names = photographs_of(purpose)  # type: ignore[arg-type]
        places = draw_places([decode_image(folder / name) for name in names], count, seed)
        fills = [
            (i, *fill)
            for i, place in enumerate(places)
            for fill in degrade(place, places[(i + 1) % count], np.random.default_rng([seed, 1, i]))
        ]
        fills += paint(places, seed)
        images, masks, marks = [], [], []
        for i, _, fill, own in fills:
            image, mask = places[i].image, places[i].mask
            filled = composite(fill[None], image[None], mask[None])[0]
            differs = float(((filled - image).abs() * mask).sum() / mask.sum() / 3)
            images.append(filled)
            masks.append(mask)
            marks.append(1 - (1 - torch.tensor(own)) * min(1.0, differs / HARDLY))
        self.kinds = [name for _, name, _, _ in fills]
        self.places = torch.tensor([i for i, *_ in fills])
        self.images, self.masks, self.marks = torch.stack(images), torch.stack(masks), torch.stack(marks)
        self.is_left_out = (self.places % len(names)) % LEFT_OUT == LEFT_OUT - 1


def describe(maps: Maps, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the features of any number of fills, in batches."""
    parts = zip(images.split(BATCH), masks.split(BATCH), strict=True)
    with torch.no_grad():
        return torch.cat([describe_hole(maps, *part) for part in parts])


def fool(maps: Maps, probe: Probe, images: torch.Tensor, masks: torch.Tensor, steps: int) -> torch.Tensor:
    """Raises the last mark by gradient ascent on the pixels of the hole; returns the pictures on the 8-bit grid."""
    found = []
    for image, mask in zip(images.split(16), masks.split(16), strict=True):
        pixels = image.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([pixels], lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            inside = torch.where(mask > 0.5, pixels.clamp(-1, 1), image)
            (-probe.logits(describe_hole(maps, inside, mask))[:, -1].sum()).backward()
            optimizer.step()
        found.append(composite(pixels.detach(), image, mask))
    return torch.cat(found)


def choose_penalty(features: torch.Tensor, marks: torch.Tensor, left_out: torch.Tensor) -> float:
    """Returns the penalty with the least squared error on the photographs left out."""
    errors = {}
    for penalty in PENALTIES:
        probe = fit_probe(features[~left_out], marks[~left_out], penalty)
        errors[penalty] = float((probe(features[left_out]) - marks[left_out]).square().mean())
    print("squared error by penalty:", {k: round(v, 5) for k, v in errors.items()}, flush=True)
    return min(errors, key=lambda penalty: errors[penalty])


def tabulate(kinds: list[str], found: torch.Tensor, marks: torch.Tensor) -> dict[str, list[float]]:
    """Returns count, mean mark and wanted mark by kind of fill, best first, for the last mark."""
    rows = defaultdict(list)
    for kind, own, wanted in zip(kinds, found[:, -1].tolist(), marks[:, -1].tolist(), strict=True):
        rows[kind].append((own, wanted))
    means = {kind: [len(pairs), *np.mean(pairs, axis=0).round(3).tolist()] for kind, pairs in rows.items()}
    return dict(sorted(means.items(), key=lambda row: -row[1][1]))


def open_annotators() -> MobileNetV2Maps:
    """Opens MobileNetV2 with the weights of its package, rounded to half precision as they are stored."""
    network = MobileNetV2Maps()
    weights = MOBILENET_V2.read()
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network.half().float().eval().requires_grad_(False)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="probes", description=__doc__)
    parser.add_argument("role", choices=("annotators", "judge"))
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--places", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="file that keeps the features")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    is_judge = options.role == "judge"
    maps = open_resnet50() if is_judge else open_annotators()
    examples = Examples(options.photographs, options.role, options.places, options.seed)
    print(len(examples.kinds), "fills", flush=True)
    if options.cache and options.cache.is_file():
        features = torch.load(options.cache)
    else:
        features = describe(maps, examples.images, examples.masks)
        if options.cache:
            torch.save(features, options.cache)
    marks = examples.marks[:, -1:] if is_judge else examples.marks
    kinds, left_out = examples.kinds, examples.is_left_out
    penalty = choose_penalty(features, marks, left_out)
    probe = fit_probe(features[~left_out], marks[~left_out], penalty)
    shown = [kind for kind, out in zip(kinds, left_out.tolist(), strict=True) if out]
    print(json.dumps(tabulate(shown, probe(features[left_out]), marks[left_out])), flush=True)
    if not is_judge:
        poor = torch.tensor([kind in ("smear", "model", "blurred texture") for kind in kinds]).nonzero()[::9, 0][:180]
        crossed = fool(maps, probe, examples.images[poor], examples.masks[poor], CROSSED)
        own = describe(maps, crossed, examples.masks[poor])
        print("fooled:", float(probe(features[poor])[:, -1].mean()), "->", float(probe(own)[:, -1].mean()), flush=True)
        features, marks = torch.cat([features, own]), torch.cat([marks, marks[poor]])
        stored = {k: v.half() if v.is_floating_point() else v for k, v in maps.state_dict().items()}
        save_file(stored, FOLDER / "annotators_network.safetensors")
    fit_probe(features, marks, penalty).save(FOLDER / f"{options.role}_probe.safetensors")


if __name__ == "__main__":
    main()
