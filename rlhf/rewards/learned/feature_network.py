"""Features of an inpainting: a backbone, and the network that turns its output into whitened features z."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from rlhf.config.reward_config import LITE0
from rlhf.data.augmentation import Augmentation
from rlhf.data.candidate_table import Key
from rlhf.data.descriptions import run_backbone
from rlhf.data.networks.efficientnet_lite import EfficientNetLite0Maps
from rlhf.data.networks.pretrained import load_whole
from rlhf.data.pictures import Pictures
from rlhf.data.ranks import Ranks
from rlhf.errors import UserError
from rlhf.rewards.learned.backbones.clip_backbone import PAPER_FROZEN_SHARE, ClipBackbone
from rlhf.rewards.learned.backbones.hole_statistics import COUNT, hole_statistics
from rlhf.rewards.learned.backbones.hole_statistics import VERSION as HOLE_STATISTICS
from rlhf.rewards.learned.backbones.maps_backbone import FolderMaps, MapsBackbone, is_clip
from rlhf.rewards.learned.backbones.prefpaint_backbone import PrefpaintBackbone, load_prefpaint_network


class SmallBackbone(nn.Module):
    """Fixed statistics of the hole against its surroundings; the network on them is learned from scratch."""

    output_dim = COUNT
    code_version: tuple[int, ...] = (HOLE_STATISTICS,)

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Describes images [B, 3, H, W] in [-1, 1] with masks [B, 1, H, W]: [B, output_dim]."""
        return hole_statistics(images, masks)


Backbone = SmallBackbone | ClipBackbone | PrefpaintBackbone | MapsBackbone


PREFPAINT_KIND = "prefpaint-release"
"""`kind` in the reward.json of a folder that holds PrefPaint's released checkpoint."""


PREFPAINT_PREFIX = f"{PREFPAINT_KIND}:"


def build_backbone(name: str, frozen_share: float = PAPER_FROZEN_SHARE) -> Backbone:
    """Builds `small`, `efficientnet-lite0`, `prefpaint-release:FILE`, or the vision model of a folder or hub name.

    Raises UserError if it is none of them, or its package or a tensor is missing.
    """
    if name == "small":
        return SmallBackbone()
    if name == LITE0:
        return MapsBackbone(EfficientNetLite0Maps())
    if name.startswith(PREFPAINT_PREFIX):
        return load_prefpaint_network(Path(name.removeprefix(PREFPAINT_PREFIX)), frozen_share)[0]
    try:
        return _open_clip(name, frozen_share) if is_clip(name) else MapsBackbone(FolderMaps(name))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"reward.backbone: {name!r} is neither `small`, `{LITE0}`, `{PREFPAINT_PREFIX}FILE`, a CLIP vision model "
            f"nor another backbone of transformers ({reason})"
        ) from error


def _open_clip(name: str, frozen_share: float) -> ClipBackbone:
    from transformers import CLIPVisionModel

    return ClipBackbone(load_whole(CLIPVisionModel, name), frozen_share)


LINEAR_LENGTH = 1.5
"""Feature vectors longer than this, in units of sqrt(feature_dim), are compressed logarithmically."""


class FeatureNetwork(nn.Module):
    """Backbone, then a linear and a non-linear head; gives whitened features z and a constant 1."""

    whitening: torch.Tensor

    def __init__(self, backbone: Backbone, feature_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.standardise = nn.BatchNorm1d(backbone.output_dim, affine=False)
        self.head = nn.Sequential(
            nn.Dropout(0.1),
            nn.Linear(backbone.output_dim, 128),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(128, feature_dim),
        )
        self.shortcut = nn.Linear(backbone.output_dim, feature_dim)
        self.centre = nn.BatchNorm1d(feature_dim, affine=False)
        self.register_buffer("whitening", torch.eye(feature_dim))
        # Predicts structure, texture, overall and total while the features are trained; the ridge head replaces it.
        self.linear = nn.Linear(feature_dim + 1, 4, bias=False)

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Returns z [B, feature_dim + 1] of images [B, 3, H, W] in [-1, 1] and masks [B, 1, H, W], 1 = repainted.

        The features are whitened, and their length beyond LINEAR_LENGTH sqrt(feature_dim) is compressed. So an image
        far from all annotated ones is less certain, but its reward does not grow without bound. The constant 1 comes
        last.
        """
        return self.features_of(self.backbone(images, masks))

    def features_of(self, described: torch.Tensor) -> torch.Tensor:
        """Returns z [B, feature_dim + 1] from the backbone's output [B, output_dim]."""
        z = self.centred_features(described) @ self.whitening
        excess = (z.norm(dim=1, keepdim=True) / (LINEAR_LENGTH * z.shape[1] ** 0.5)).clamp(min=1.0)
        z = z * (1 + excess.log()) / excess
        return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)

    def centred_features(self, described: torch.Tensor) -> torch.Tensor:
        """Returns the features before whitening, [B, feature_dim]."""
        pooled = self.standardise(described)
        return self.centre(self.head(pooled) + self.shortcut(pooled))


@torch.no_grad()
def whiten(network: FeatureNetwork, described: torch.Tensor, shrinkage: float = 0.05) -> None:
    """Sets the whitening so that the features of these images, described as [N, output_dim], are nearly uncorrelated.

    The whitening is the inverse square root of their covariance, shrunk to its mean eigenvalue. Without it a few
    directions would carry all the variance, and V would measure distance in those alone.
    """
    network.eval()
    z = network.centred_features(described)
    eigenvalues, vectors = torch.linalg.eigh(torch.cov(z.T.double()))
    shrunk = (1 - shrinkage) * eigenvalues + shrinkage * eigenvalues.mean()
    network.whitening.copy_((vectors * shrunk.rsqrt()) @ vectors.T)
    mean, variance = network.centre.running_mean, network.centre.running_var
    assert mean is not None
    assert variance is not None
    mean += z.mean(0) * (variance + network.centre.eps).sqrt()


GiveBack = Callable[[torch.Tensor | None], None]
"""Takes the gradient [N, D] of described images to the backbone's weights."""


def describe_to_train(
    backbone: Backbone, pictures: Pictures, keys: Sequence[Key], change: Augmentation, ranks: Ranks
) -> tuple[torch.Tensor, GiveBack]:
    """Returns a trained backbone's output [N, D] for images of all ranks, and how its gradient reaches the weights.

    Each rank describes its own images. The loss compares all of them (batch norm, pairs, covariances), so every rank
    computes it on all rows, and the weights' gradients, one part from each rank, are added: the sum is that of one
    worker. Images that do not fit into one batch are described again for the gradient, so that memory holds one batch
    of activations (gradient caching, arXiv:2101.06983).
    """
    with ranks.agreed():
        own = sorted(ranks.own(keys), key=lambda place: pictures.prompts[keys[place][0]].size)
        batches = [change.apply(*pictures.show(batch)) for batch in pictures.batches([keys[place] for place in own])]
    with torch.set_grad_enabled(len(batches) == 1):
        outputs = [run_backbone(backbone, *batch) for batch in batches]
    found = torch.cat(outputs) if outputs else torch.zeros(0, backbone.output_dim)
    in_order = torch.empty_like(found)
    in_order[torch.tensor(own).argsort().argsort()] = found.detach()
    joined = ranks.join(keys, in_order).requires_grad_()

    def give_back(gradient: torch.Tensor | None) -> None:
        assert gradient is not None, "the loss depends on all images"
        parts = gradient[own].split([len(output) for output in outputs])
        for output, batch, part in zip(outputs, batches, parts, strict=True):
            (output if output.requires_grad else run_backbone(backbone, *batch)).backward(part)
        add_gradients(backbone, ranks)

    return joined, give_back


def add_gradients(backbone: Backbone, ranks: Ranks) -> None:
    """Adds the gradients of the backbone's trained weights over all ranks."""
    if ranks.count == 1:
        return
    weights = [p for p in backbone.parameters() if p.requires_grad]
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
    total = ranks.add(torch.cat([gradient.flatten().cpu() for gradient in own]))
    for weight, part in zip(weights, total.split([p.numel() for p in weights]), strict=True):
        weight.grad = part.view_as(weight).to(weight.device)


def is_fixed(backbone: Backbone) -> bool:
    """Returns whether no weight of the backbone is trained."""
    return not any(p.requires_grad for p in backbone.parameters())
