"""The held-out network: a pretrained network that trains neither annotators nor reward nor policy.

A probe on its features marks how real a fill looks, from 0 to 1; its features also give a perceptual distance from the
original, and FID and KID. The probe was trained on photographs that serve nothing else, to mark fills of known quality
as the simulated annotators' probe was, so the two judges share their taste, but neither network nor photographs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from rlhf.data.networks.hole_features import describe_hole, enlarge
from rlhf.data.networks.probe import Probe, load_probe
from rlhf.data.networks.resnet50 import ResNet50Maps, open_resnet50
from rlhf.data.networks.weights import FOLDER
from rlhf.rewards.scores import Scores

NAME = "held_out_network"
"""Name of the judge in tables and files."""
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class NetworkJudge:
    """ResNet-50 and the judge's probe."""

    maps: ResNet50Maps
    probe: Probe
    device: torch.device

    @torch.no_grad()
    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Marks images from 0 to 1; captions are not read. Shapes as in Reward."""
        parts = zip(images.split(BATCH), masks.split(BATCH), strict=True)
        features = [describe_hole(self.maps, *(x.to(self.device) for x in part)).cpu() for part in parts]
        return Scores(reward=self.probe(torch.cat(features))[:, 0].double())

    @torch.no_grad()
    def distance(self, images: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        """Returns the squared distance of unit-length features, mean over the depths: [B, 1, H, W]."""
        total = torch.zeros_like(images[:, :1])
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            pairs = zip(*(self.maps(enlarge(x[part].to(self.device))) for x in (images, originals)), strict=True)
            for ours, theirs in pairs:
                difference = (F.normalize(ours, dim=1) - F.normalize(theirs, dim=1)).square().sum(1, keepdim=True)
                total[part] += F.interpolate(difference.cpu(), size=images.shape[-2:], mode="bilinear")
        return total / len(self.maps.channels)

    @torch.no_grad()
    def describe(self, images: torch.Tensor) -> np.ndarray:
        """Returns the means of the last map's channels for FID and KID, float64 [B, d]."""
        parts = [self.maps(enlarge(part.to(self.device)))[-1].mean((2, 3)) for part in images.split(BATCH)]
        return torch.cat(parts).double().cpu().numpy()


def open_network_judge(device: torch.device) -> NetworkJudge:
    """Opens the judge. Raises UserError if the package with the network's weights is not installed."""
    return NetworkJudge(
        maps=open_resnet50().to(device), probe=load_probe(FOLDER / "judge_probe.safetensors"), device=device
    )
