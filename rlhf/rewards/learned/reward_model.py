"""Reward model: a network that maps an inpainting to features, a ridge head on them, and the calibrated bound."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from rlhf.config.align_config import Trust
from rlhf.rewards.learned.bound import PromptEffects, RidgeHead
from rlhf.rewards.learned.feature_network import FeatureNetwork
from rlhf.rewards.scores import Scores
from rlhf.rewards.trust_weight import trust_weight
from rlhf.storage.atomic_files import atomic_write, atomic_write_json
from rlhf.storage.checksum import checksum

SCHEMA_VERSION = 4


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Numbers that turn an uncertainty into bounds and trust weights."""

    coverage: float
    """Stated coverage of the conformal bound on a new annotation."""
    conformal: float
    """Conformal multiplier of the uncertainty."""
    theorem: float
    """Multiplier of the uncertainty by the theorem (Abbasi-Yadkori et al. 2011, theorem 2)."""
    noise: float
    """B: deviation of the annotations' noise, from repeated annotations."""
    delta: float
    """Probability that the theorem's bound fails."""
    ridge: float
    """lambda of the ridge head."""
    parameter_norm: float
    """S: assumed norm of psi* less the head of part A."""
    median_uncertainty: float
    """Median uncertainty on part C; trust weights are scaled by it."""
    trust_k: float
    """k of the trust weight exp(-k u + b)."""
    trust_b: float
    """b of the trust weight."""
    uncertainty_quantile: float | None = None
    """0.95 quantile of the uncertainty on part C; beyond it an image is out of distribution. None in older folders."""
    within: float | None = None
    """Variance of the annotations of one prompt around the head; None in older folders."""
    between: float | None = None
    """Variance of the error that the annotations of one prompt share; None in older folders."""
    median_released_norm: float | None = None
    """Median of PrefPaint's norm ||V^-1 z|| on part C; `align.trust: release` scales by it. None in older folders."""

    @property
    def prompt_effects(self) -> PromptEffects | None:
        """Both variances, by which further annotations are discounted; None in older folders."""
        if self.within is None or self.between is None:
            return None
        return PromptEffects(within=self.within, between=self.between)


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """Reward of a folder that `rlhf reward` wrote: frozen features, the ridge head with its V, and the calibration."""

    network: FeatureNetwork
    """On any device; the head stays on the CPU, in float64."""
    head: RidgeHead
    calibration: Calibration
    backbone: str
    """Name of the backbone, as in `reward.backbone`."""
    feature_dim: int
    """Length of the features, without the constant."""
    trust: Trust = "auto"
    """`release` makes the trust weight of PrefPaint's ||V^-1 z||, every other kind of sqrt(z' V^-1 z)."""

    @torch.no_grad()
    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str] = ()) -> Scores:
        """Scores images with bounds and trust weights; captions are not read. Shapes as in Reward."""
        self.network.eval()
        device = self.network.whitening.device
        features = self.network(images.to(device), masks.to(device)).cpu()
        uncertainty, c = self.head.uncertainty(features), self.calibration
        return Scores(
            reward=self.head.reward(features),
            uncertainty=uncertainty,
            trust_weight=self._trust_weight(features, uncertainty),
            width=c.conformal * uncertainty,
            is_outlying=None if c.uncertainty_quantile is None else uncertainty > c.uncertainty_quantile,
        )

    def _trust_weight(self, features: torch.Tensor, uncertainty: torch.Tensor) -> torch.Tensor:
        c, norm, median = self.calibration, uncertainty, self.calibration.median_uncertainty
        if self.trust == "release":
            assert c.median_released_norm is not None, "load_reward refuses such a folder"
            norm, median = self.head.released_norm(features), c.median_released_norm
        return trust_weight(norm, median, c.trust_k, c.trust_b)

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors`, `head.safetensors` and, last, `reward.json`."""
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
                "checksums": {
                    "model.safetensors": checksum(self.network.state_dict()),
                    "head.safetensors": checksum(head),
                },
            },
        )
