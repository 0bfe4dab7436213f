"""The gold judge: the noiseless utility behind the marks of simulated annotators.

Like a person it sees the filled picture and the hole, never the hidden original. Features of MobileNetV2 are pooled
inside the hole, around it and across its border, and a probe turns them into three marks. The probe learned from
originals, continued textures, degradations of all strengths and the fills of painters, each with marks that say how
good such a fill is (benchmarks/probes/fills.py). The photographs that it learned from serve nothing else, and it was
fixed before any policy was aligned. Neither training nor the choice of a checkpoint uses this judge.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from safetensors.torch import load_file

from rlhf.data.networks.hole_features import describe_hole
from rlhf.data.networks.mobilenet_v2 import MobileNetV2Maps
from rlhf.data.networks.probe import Probe, load_probe
from rlhf.data.networks.weights import FOLDER


@dataclass(frozen=True, kw_only=True)
class Utility:
    """Utilities of a batch of inpaintings, each [B], in (0, 1)."""

    structure: torch.Tensor
    """Whether the fill belongs there: it continues what surrounds the hole."""
    texture: torch.Tensor
    """Whether its local detail is real."""
    overall: torch.Tensor
    """Whether the picture looks real; seams, blur, noise and foreign content lower it."""


def gold_utility(images: torch.Tensor, masks: torch.Tensor) -> Utility:
    """Judges inpaintings [B, 3, H, W] in [-1, 1] with masks [B, 1, H, W], 1 = repainted.

    Gradients flow to images that require them, so that the judge can be attacked.
    """
    network, probe = _open()
    structure, texture, overall = probe(describe_hole(network, images.float(), masks.float())).unbind(1)
    return Utility(structure=structure, texture=texture, overall=overall)


@lru_cache(maxsize=1)
def _open() -> tuple[MobileNetV2Maps, Probe]:
    network = MobileNetV2Maps()
    weights = load_file(FOLDER / "annotators_network.safetensors")
    network.load_state_dict(weights)  # half precision, copied into float32
    return network.eval().requires_grad_(False), load_probe(FOLDER / "annotators_probe.safetensors")
