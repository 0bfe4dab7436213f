"""The reward model: networks that map an inpainting to features, and the scored result with its bound."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rlhf.bound import RidgeHead, trust_weight
from rlhf.errors import UserError
from rlhf.hole_statistics import COUNT, hole_statistics
from rlhf.images import blank_hole
from rlhf.storage import atomic_write, atomic_write_json

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

SCHEMA_VERSION = 3


class SmallBackbone(nn.Module):
    """Fixed statistics of the hole against its surroundings; what they are worth is learned from scratch."""

    output_dim = COUNT

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] and [B, 1, H, W] to [B, output_dim]."""
        return hole_statistics(images, masks)


class ClipBackbone(nn.Module):
    """A CLIP vision tower on the inpainting and on the masked image, concatenated (PrefPaint, section 5)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, tower: "CLIPVisionModel", frozen_share: float = 0.7) -> None:
        super().__init__()
        self.tower = tower
        layers = tower.vision_model.encoder.layers if hasattr(tower, "vision_model") else tower.encoder.layers
        for layer in layers[: round(frozen_share * len(layers))]:
            layer.requires_grad_(False)
        self.output_dim = 2 * tower.config.hidden_size
        self.register_buffer("mean", torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] and [B, 1, H, W] to [B, output_dim]."""
        both = [self._embed(x) for x in (images, blank_hole(images, masks))]
        return torch.cat(both, dim=1)

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        size = self.tower.config.image_size
        resized = F.interpolate(
            (images + 1) / 2, size=(size, size), mode="bicubic", antialias=True, align_corners=False
        )
        return self.tower(pixel_values=(resized.clamp(0, 1) - self.mean) / self.std).pooler_output


Backbone = SmallBackbone | ClipBackbone


def build_backbone(name: str) -> Backbone:
    """`small`, or the CLIP vision model in a folder or hub repository of that name."""
    if name == "small":
        return SmallBackbone()
    from transformers import CLIPVisionModel

    try:
        return ClipBackbone(CLIPVisionModel.from_pretrained(name))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"reward.backbone: {name!r} is neither `small` nor a CLIP vision model ({reason})") from error


MAX_LENGTH = 1.5
"""Length that features are cut to, in units of the length that whitened features have at the root of mean square."""


class FeatureNetwork(nn.Module):
    """Backbone, then a linear and a non-linear head to whitened features z of bounded length plus a constant 1."""

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
        # Predicts structure, texture, overall and total while the features are trained; then ridge takes over.
        self.linear = nn.Linear(feature_dim + 1, 4, bias=False)

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [-1, 1], masks [B, 1, H, W], 1 = repainted; returns z [B, feature_dim + 1].

        The features are whitened and at most MAX_LENGTH sqrt(feature_dim) long; the constant comes last.
        """
        z = self.centred_features(images, masks) @ self.whitening
        z = z * (MAX_LENGTH * z.shape[1] ** 0.5 / z.norm(dim=1, keepdim=True)).clamp(max=1.0)
        return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)

    def centred_features(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Features before the whitening, [B, feature_dim]."""
        pooled = self.standardise(self.backbone(images, masks))
        return self.centre(self.head(pooled) + self.shortcut(pooled))


@torch.no_grad()
def whiten(network: FeatureNetwork, images: torch.Tensor, masks: torch.Tensor, shrinkage: float = 0.05) -> None:
    """Set the whitening so that the features of these images are all but uncorrelated.

    The inverse square root of their covariance, shrunk towards its mean eigenvalue. Without it a few
    directions carry everything, and V measures distance in those alone.
    """
    network.eval()
    parts = zip(images.split(256), masks.split(256), strict=True)
    z = torch.cat([network.centred_features(i, m) for i, m in parts])
    eigenvalues, vectors = torch.linalg.eigh(torch.cov(z.T.double()))
    shrunk = (1 - shrinkage) * eigenvalues + shrinkage * eigenvalues.mean()
    network.whitening.copy_((vectors * shrunk.rsqrt()) @ vectors.T)
    mean, variance = network.centre.running_mean, network.centre.running_var
    assert mean is not None
    assert variance is not None
    mean += z.mean(0) * (variance + network.centre.eps).sqrt()


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Numbers that turn an uncertainty into bounds and trust weights."""

    coverage: float
    """Stated coverage of the conformal bound on a new annotation."""
    conformal: float
    """Conformal multiplier of the uncertainty."""
    theorem: float
    """Theorem's multiplier."""
    noise: float
    """B, from repeated annotations."""
    delta: float
    ridge: float
    parameter_norm: float
    median_uncertainty: float
    """On part C; trust weights are scaled by it."""
    trust_k: float
    trust_b: float
    uncertainty_quantile: float | None = None
    """0.95 quantile of the uncertainty on part B; beyond it an image is out of distribution. None in older folders."""


@dataclass(frozen=True, kw_only=True)
class ScoredImages:
    """What the reward model says of a batch, each [B]; rewards are in units of the normalised score."""

    reward: torch.Tensor
    uncertainty: torch.Tensor
    lower: torch.Tensor
    """reward - conformal multiplier x uncertainty."""
    upper: torch.Tensor
    theorem_width: torch.Tensor
    """theorem's multiplier x uncertainty: of |reward - expected score|."""
    trust_weight: torch.Tensor
    """exp(-k u + b), not divided by its mean."""
    features: torch.Tensor
    """[B, d]."""


class Reward(Protocol):
    """Anything that scores inpaintings with a bound."""

    def score(self, images: torch.Tensor, masks: torch.Tensor) -> ScoredImages:
        """Images [B, 3, H, W] in [-1, 1]; masks [B, 1, H, W]."""


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """Frozen features, the ridge head on them, V, and the calibration."""

    network: FeatureNetwork
    head: RidgeHead
    calibration: Calibration
    backbone: str
    feature_dim: int

    @torch.no_grad()
    def score(self, images: torch.Tensor, masks: torch.Tensor) -> ScoredImages:
        """Reward, uncertainty and bounds; images [B, 3, H, W] in [-1, 1], masks [B, 1, H, W]."""
        self.network.eval()
        features = self.network(images, masks)
        reward, uncertainty = self.head.reward(features), self.head.uncertainty(features)
        c = self.calibration
        return ScoredImages(
            reward=reward,
            uncertainty=uncertainty,
            lower=reward - c.conformal * uncertainty,
            upper=reward + c.conformal * uncertainty,
            theorem_width=c.theorem * uncertainty,
            trust_weight=trust_weight(uncertainty, c.median_uncertainty, c.trust_k, c.trust_b),
            features=features,
        )

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, `head.safetensors` and `reward.json`, which comes last."""
        (folder / "reward.json").unlink(missing_ok=True)
        atomic_write(folder / "model.safetensors", lambda p: save_file(self.network.state_dict(), p))
        head = {"weight": self.head.weight, "cholesky": self.head.cholesky}
        atomic_write(folder / "head.safetensors", lambda p: save_file(head, p))
        atomic_write_json(
            folder / "reward.json",
            {
                "schema_version": SCHEMA_VERSION,
                "backbone": self.backbone,
                "feature_dim": self.feature_dim,
                "calibration": asdict(self.calibration),
            },
        )


def load_reward(folder: Path) -> RewardModel:
    """Open a reward folder; UserError where it is incomplete or of another architecture."""
    try:
        record = json.loads((folder / "reward.json").read_text())
        if record["schema_version"] != SCHEMA_VERSION:
            raise UserError(f"{folder}: schema {record['schema_version']}, but this version reads {SCHEMA_VERSION}")
        network = FeatureNetwork(build_backbone(record["backbone"]), record["feature_dim"])
        network.load_state_dict(load_file(folder / "model.safetensors"))
        head = load_file(folder / "head.safetensors")
        calibration = Calibration(**record["calibration"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: not a complete reward folder ({error}); run `rlhf reward` again") from error
    ridge_head = RidgeHead(weight=head["weight"], cholesky=head["cholesky"], ridge=calibration.ridge)
    return RewardModel(
        network=network.eval(),
        head=ridge_head,
        calibration=calibration,
        backbone=record["backbone"],
        feature_dim=record["feature_dim"],
    )
