"""The reward model: networks that map an inpainting to features, and the scored result with its bound."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rlhf.errors import UserError
from rlhf.rewards.learned.bound import PromptEffects, RidgeHead, trust_weight
from rlhf.rewards.learned.clip_backbone import PAPER_FROZEN_SHARE, ClipBackbone
from rlhf.rewards.learned.hole_statistics import COUNT, hole_statistics
from rlhf.rewards.learned.prefpaint_backbone import ReleaseBackbone, load_release
from rlhf.storage.atomic_files import atomic_write, atomic_write_json, check_schema
from rlhf.storage.url_path import local_copy

SCHEMA_VERSION = 4


class SmallBackbone(nn.Module):
    """Fixed statistics of the hole against its surroundings; what they are worth is learned from scratch."""

    output_dim = COUNT

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] and [B, 1, H, W] to [B, output_dim]."""
        return hole_statistics(images, masks)


Backbone = SmallBackbone | ClipBackbone | ReleaseBackbone
RELEASE_KIND = "prefpaint-release"
"""`kind` in the reward.json of a folder that holds PrefPaint's released checkpoint."""
RELEASE_PREFIX = f"{RELEASE_KIND}:"


def build_backbone(name: str, frozen_share: float = PAPER_FROZEN_SHARE) -> Backbone:
    """`small`, `prefpaint-release:CHECKPOINT`, or the CLIP vision model in a folder or hub repository of that name."""
    if name == "small":
        return SmallBackbone()
    if name.startswith(RELEASE_PREFIX):
        return load_release(Path(name.removeprefix(RELEASE_PREFIX)), frozen_share)[0]
    from transformers import CLIPVisionModel

    try:
        return ClipBackbone(CLIPVisionModel.from_pretrained(name), frozen_share)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"reward.backbone: {name!r} is neither `small`, `{RELEASE_PREFIX}FILE` nor a CLIP vision model ({reason})"
        ) from error


LINEAR_LENGTH = 1.5
"""Length beyond which features grow as its logarithm, in units of the root of the whitened features' mean square."""

BATCH = 256
"""Images that a backbone describes at once."""


class FeatureNetwork(nn.Module):
    """Backbone, then a linear and a non-linear head to whitened features z of compressed length plus a constant 1."""

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

        The features are whitened, and longer than LINEAR_LENGTH sqrt(feature_dim) only by the logarithm, so that
        what is far from all that was annotated is less certain, but not rewarded without measure; the constant
        comes last.
        """
        return self.features_of(self.backbone(images, masks))

    def features_of(self, described: torch.Tensor) -> torch.Tensor:
        """The same from what the backbone says of the images, [B, output_dim]."""
        z = self.centred_features(described) @ self.whitening
        excess = (z.norm(dim=1, keepdim=True) / (LINEAR_LENGTH * z.shape[1] ** 0.5)).clamp(min=1.0)
        z = z * (1 + excess.log()) / excess
        return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)

    def centred_features(self, described: torch.Tensor) -> torch.Tensor:
        """Features before the whitening, [B, feature_dim]."""
        pooled = self.standardise(described)
        return self.centre(self.head(pooled) + self.shortcut(pooled))


@torch.no_grad()
def describe(network: FeatureNetwork, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """What the backbone says of any number of images: [N, output_dim]."""
    parts = zip(images.split(BATCH), masks.split(BATCH), strict=True)
    return torch.cat([network.backbone(i, m) for i, m in parts])


@torch.no_grad()
def whiten(network: FeatureNetwork, described: torch.Tensor, shrinkage: float = 0.05) -> None:
    """Set the whitening so that the features of these images, [N, output_dim], are all but uncorrelated.

    The inverse square root of their covariance, shrunk towards its mean eigenvalue. Without it a few
    directions carry everything, and V measures distance in those alone.
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
    """0.95 quantile of the uncertainty on part C; beyond it an image is out of distribution. None in older folders."""
    within: float | None = None
    """Variance of a prompt's annotations around the head, and `between`: of what a prompt's annotations share.
    Further annotations are discounted by them; None in older folders."""
    between: float | None = None
    median_released_norm: float | None = None
    """Of ||V^-1 z|| on part C; weights of `align.trust: release` are scaled by it. None in older folders."""

    @property
    def prompt_effects(self) -> PromptEffects | None:
        """Both variances, where they are known."""
        if self.within is None or self.between is None:
            return None
        return PromptEffects(within=self.within, between=self.between)


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
    release_weight: torch.Tensor | None = None
    """The same of the released norm; None where its calibration median is not known."""
    is_outlying: torch.Tensor | None = None
    """bool: less certain than 95 % of the calibrated images; None where that is not known."""


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
        c, of_release = self.calibration, None
        if c.median_released_norm is not None:
            norm = self.head.released_norm(features)
            of_release = trust_weight(norm, c.median_released_norm, c.trust_k, c.trust_b)
        return ScoredImages(
            reward=reward,
            uncertainty=uncertainty,
            lower=reward - c.conformal * uncertainty,
            upper=reward + c.conformal * uncertainty,
            theorem_width=c.theorem * uncertainty,
            trust_weight=trust_weight(uncertainty, c.median_uncertainty, c.trust_k, c.trust_b),
            features=features,
            release_weight=of_release,
            is_outlying=None if c.uncertainty_quantile is None else uncertainty > c.uncertainty_quantile,
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


def load_reward(folder: Path) -> Reward:
    """Open a reward folder; UserError where it is incomplete or of another architecture."""
    try:
        record = json.loads((folder / "reward.json").read_text())
        if record.get("kind") == RELEASE_KIND:
            # Imported here, since its scores are this module's.
            from rlhf.rewards.learned.prefpaint_reward import load_released_reward

            return load_released_reward(folder, record)
        check_schema(record["schema_version"], SCHEMA_VERSION, folder / "reward.json")
        if record["schema_version"] != SCHEMA_VERSION:
            raise UserError(
                f"{folder}: schema {record['schema_version']}, but this version reads {SCHEMA_VERSION}; "
                "run `rlhf reward` again"
            )
        network = FeatureNetwork(build_backbone(record["backbone"]), record["feature_dim"])
        with local_copy(folder) as local:
            network.load_state_dict(load_file(local / "model.safetensors"))
            head = load_file(local / "head.safetensors")
        calibration = Calibration(**record["calibration"])
        check_shapes(head, record["feature_dim"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: not a complete reward folder ({error}); run `rlhf reward` again") from error
    ridge_head = RidgeHead(weight=head["weight"], cholesky=head["cholesky"], ridge=calibration.ridge)
    check_finite(folder, network, ridge_head)
    return RewardModel(
        network=network.eval(),
        head=ridge_head,
        calibration=calibration,
        backbone=record["backbone"],
        feature_dim=record["feature_dim"],
    )


def check_shapes(head: dict[str, torch.Tensor], feature_dim: int) -> None:
    """ValueError where the tensors of a ridge head are not those of so many features and a constant."""
    size = feature_dim + 1
    for name, shape in (("weight", (size,)), ("cholesky", (size, size))):
        if head[name].shape != shape:
            raise ValueError(f"head.safetensors: {name} is {tuple(head[name].shape)}, not {shape}")


def check_finite(folder: Path, network: torch.nn.Module, head: RidgeHead) -> None:
    """UserError where a loaded reward would give no numbers: NaN in it, or a V that is not positive definite."""
    if not all(tensor.isfinite().all() for tensor in (*network.state_dict().values(), head.weight)):
        raise UserError(f"{folder}: holds values that are not finite; run `rlhf reward` again")
    # Whatever its sign, L L' is positive definite where L is finite and has no 0 on its diagonal.
    if not head.cholesky.isfinite().all() or not head.cholesky.diagonal().all():
        raise UserError(f"{folder}: V in head.safetensors is not positive definite; run `rlhf reward` again")
