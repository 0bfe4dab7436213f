"""The held-out network: a pretrained network that trains neither annotators nor reward nor policy.

A probe on its features marks how real a fill looks, from 0 to 1; its features also give a perceptual distance from the
original, and FID and KID. The probe was trained on photographs that serve nothing else, to mark fills of known quality
as the simulated annotators' probe was, so the two judges share their taste, but neither network nor photographs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from rlhf.data.networks.hole_features import enlarge, images_at_once, pool_hole
from rlhf.data.networks.probe import Probe, load_probe
from rlhf.data.networks.resnet50 import ResNet50Maps, open_resnet50
from rlhf.data.networks.weights import FOLDER
from rlhf.rewards.scores import Scores

NAME = "held_out_network"
"""Name of the judge in tables and files."""
BATCH = 64
"""Number of images whose maps are kept."""


@dataclass(frozen=True, kw_only=True)
class NetworkJudge:
    """ResNet-50 and the judge's probe."""

    maps: ResNet50Maps
    probe: Probe
    device: torch.device
    _latest: list[tuple[torch.Tensor, list[list[torch.Tensor]]]] = field(
        default_factory=list, repr=False, compare=False
    )
    """The batch that was seen last, with its maps: mark and distance are asked for the same pictures."""

    @torch.no_grad()
    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Marks images from 0 to 1; captions are not read. Shapes as in Reward."""
        features = [
            pool_hole(found, part.to(self.device), own.to(self.device)).cpu()
            for batch, holes in zip(images.split(BATCH), masks.split(BATCH), strict=True)
            for part, own, found in zip(self._split(batch), self._split(holes), self._maps_of(batch), strict=True)
        ]
        return Scores(reward=self.probe(torch.cat(features))[:, 0].double())

    @torch.no_grad()
    def distance(self, images: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        """Returns the squared distance of unit-length features, mean over the depths: [B, 1, H, W].

        Each of the originals [P, 3, H, W] belongs to B / P consecutive images.
        """
        total = torch.zeros_like(images[:, :1])
        whose = torch.arange(len(images)) // (len(images) // len(originals))
        for batch in torch.arange(len(images)).split(BATCH):
            for part, found in zip(self._split(batch), self._maps_of(images[batch[0] : batch[-1] + 1]), strict=True):
                own = whose[part]
                seen = self.maps(enlarge(originals[own[0] : own[-1] + 1].to(self.device)))
                for ours, theirs in zip(found, seen, strict=True):
                    each = F.normalize(theirs, dim=1)[own - own[0]]
                    difference = (F.normalize(ours, dim=1) - each).square().sum(1, keepdim=True)
                    total[part] += F.interpolate(difference.cpu(), size=images.shape[-2:], mode="bilinear")
        return total / len(self.maps.channels)

    @torch.no_grad()
    def describe(self, images: torch.Tensor) -> np.ndarray:
        """Returns the means of the last map's channels for FID and KID, float64 [B, d]."""
        parts = [found[-1].mean((2, 3)) for batch in images.split(BATCH) for found in self._maps_of(batch)]
        return torch.cat(parts).double().cpu().numpy()

    def _split(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return images.split(images_at_once(self.device))

    def _maps_of(self, images: torch.Tensor) -> list[list[torch.Tensor]]:
        """Maps of a batch's parts, kept until the next batch; what keeps one keeps its place in memory from reuse."""

        def place(batch: torch.Tensor) -> tuple[int, torch.Size, int]:
            return batch.data_ptr(), batch.shape, batch._version

        if not self._latest or place(self._latest[0][0]) != place(images):
            self._latest[:] = [(images, [self.maps(enlarge(part.to(self.device))) for part in self._split(images)])]
        return self._latest[0][1]


def open_network_judge(device: torch.device) -> NetworkJudge:
    """Opens the judge. Raises UserError if the package with the network's weights is not installed."""
    return NetworkJudge(
        maps=open_resnet50().to(device), probe=load_probe(FOLDER / "judge_probe.safetensors"), device=device
    )
