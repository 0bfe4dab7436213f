"""The reward model: networks that map an inpainting to features, and the scored result with its bound."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file

from rlhf.rewards.learned.bound import PromptEffects, RidgeHead, trust_weight
from rlhf.rewards.learned.feature_network import FeatureNetwork
from rlhf.storage.atomic_files import atomic_write, atomic_write_json

SCHEMA_VERSION = 4


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
