"""PrefPaint's released reward model with its released V^-1, as a reward that scores, bounds and weighs.

A folder of kind `prefpaint-release` holds `checkpoint.pt` (or .pth, .safetensors), `V_inverse.pt` and
`reward.json`. Its reward is z @ w, in units of the paper's normalised score. Two uncertainties:

- sqrt(z' V^-1 z), which the proof of the bound needs (PrefPaint eq. 7): reported, and what bounds are made of;
- ||z' V^-1||, which the released code computes: makes the trust weight, as it did there, by exp(-0.05 u + 0.7)
  clipped to [1, 2.21].

The release says nothing of the noise of its labels, so there is no theorem's multiplier: that width is infinite.
Lower and upper bounds need a conformal multiplier from annotations (`calibrate`); without one they are infinite.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import torch

from rlhf.data.annotated_images import AnnotatedImages
from rlhf.errors import UserError
from rlhf.rewards.learned.bound import conformal_multiplier
from rlhf.rewards.learned.feature_network import RELEASE_KIND
from rlhf.rewards.learned.prefpaint_backbone import ReleaseBackbone, load_release
from rlhf.rewards.learned.reward_model import ScoredImages
from rlhf.storage.atomic_files import atomic_write, atomic_write_json
from rlhf.storage.url_path import local_copy

TRUST_K, TRUST_B, TRUST_CLIP = 0.05, 0.7, (1.0, 2.21)
"""Of exp(-k u + b), u the released norm (PrefPaint eq. 12 and its code); the upper clip never binds."""
MAX_ASYMMETRY = 1e-3
"""Largest difference of V^-1 from its transpose, relative to its largest element; float32 leaves 1e-5."""
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ReleaseCalibration:
    """A conformal multiplier of sqrt(z' V^-1 z), from annotations of pictures that trained nothing."""

    coverage: float
    """Stated coverage on a new annotation, in normalised scores."""
    conformal: float
    annotations: int
    """How many it rests on."""


@dataclass(frozen=True, kw_only=True)
class ReleaseBound:
    """V^-1 as it was released, and both norms that are made of it."""

    inverse: torch.Tensor
    """float64 [d, d]: V^-1, made symmetric."""
    factor: torch.Tensor
    """float64 [d, d], lower triangular L with L L' = V^-1."""

    def proper(self, features: torch.Tensor) -> torch.Tensor:
        """sqrt(z' V^-1 z) = ||z' L||; features [B, d], returns float64 [B]."""
        return (features.double() @ self.factor).norm(dim=1)

    def released(self, features: torch.Tensor) -> torch.Tensor:
        """||z' V^-1||, the released code's norm; features [B, d], returns float64 [B]."""
        return (features.double() @ self.inverse).norm(dim=1)

    def design_features(self) -> torch.Tensor:
        """Rows F [d, d] with F'F = Z'Z = V - lambda I, lambda being V's least eigenvalue; for its effective rank."""
        eigenvalues, vectors = torch.linalg.eigh(self.inverse)
        gram = (1 / eigenvalues - 1 / eigenvalues.max()).clamp(min=0)
        return gram.sqrt()[:, None] * vectors.T


@dataclass(frozen=True, kw_only=True)
class ReleasedReward:
    """The released network, its last layer, its V^-1, and what turns uncertainty into bounds."""

    backbone: ReleaseBackbone
    weight: torch.Tensor
    """float32 [d]: w."""
    bound: ReleaseBound
    calibration: ReleaseCalibration | None = None

    @torch.no_grad()
    def score(self, images: torch.Tensor, masks: torch.Tensor) -> ScoredImages:
        """Images [B, 3, H, W] in [-1, 1], masks [B, 1, H, W], 1 = repainted.

        Raises UserError where a picture's reward or uncertainty is not finite: no NaN leaves here.
        """
        self.backbone.eval()
        features = self.backbone(images, masks)
        reward, uncertainty = features.double() @ self.weight.double(), self.bound.proper(features)
        bad = torch.nonzero(~torch.isfinite(reward + uncertainty)).flatten().tolist()
        if bad:
            raise UserError(f"reward: pictures {bad[:5]} of a batch of {len(reward)} have no finite reward; check them")
        infinite = torch.full_like(reward, torch.inf)
        width = infinite if self.calibration is None else self.calibration.conformal * uncertainty
        weights = torch.exp(-TRUST_K * self.bound.released(features) + TRUST_B).clamp(*TRUST_CLIP)
        return ScoredImages(
            reward=reward,
            uncertainty=uncertainty,
            lower=reward - width,
            upper=reward + width,
            theorem_width=infinite,
            trust_weight=weights,
            features=features,
            release_weight=weights,
        )


def read_inverse(path: Path, feature_dim: int) -> ReleaseBound:
    """V^-1 from a .pt file; UserError where it is unreadable, of another size, or no inverse of a V."""
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable V_inverse.pt ({reason}); download it again") from error
    if not isinstance(record, torch.Tensor) or record.shape != (feature_dim, feature_dim):
        found = tuple(record.shape) if isinstance(record, torch.Tensor) else type(record).__name__
        raise UserError(
            f"{path}: holds {found}, but the checkpoint's features need a {feature_dim}x{feature_dim} matrix"
        )
    inverse = record.double()
    asymmetry = (inverse - inverse.T).abs().max() / inverse.abs().max()
    symmetric = (inverse + inverse.T) / 2
    factor, info = torch.linalg.cholesky_ex(symmetric)
    if not torch.isfinite(inverse).all() or asymmetry > MAX_ASYMMETRY or int(info) != 0:
        raise UserError(f"{path}: is not symmetric and positive definite, so no V^-1; download it again")
    return ReleaseBound(inverse=symmetric, factor=factor)


def adopt_release(checkpoint: Path, v_inverse: Path, out: Path) -> ReleasedReward:
    """Check the released files, copy them into the reward folder `out`, and open it; `reward.json` comes last."""
    backbone, weight = load_release(checkpoint)
    bound = read_inverse(v_inverse, backbone.output_dim)
    if (out / "reward.json").is_file():
        (out / "reward.json").unlink()
    name = f"checkpoint{checkpoint.suffix}"
    _copy(checkpoint, out / name)
    _copy(v_inverse, out / "V_inverse.pt")
    _write_record(out, name, None)
    return ReleasedReward(backbone=backbone, weight=weight, bound=bound)


def _copy(source: Path, target: Path) -> None:
    atomic_write(target, lambda temporary: shutil.copyfile(source, temporary))


def calibrate(folder: Path, data: AnnotatedImages, coverage: float) -> ReleaseCalibration:
    """Fit the conformal multiplier to annotated pictures, and write it into the folder's `reward.json`.

    The scores are those of `join_annotations`, normalised as the paper normalises. Coverage holds for
    pictures like these, if none of them trained the checkpoint. Raises UserError where there are too few.
    """
    record = json.loads((folder / "reward.json").read_text())
    model = load_released_reward(folder, record)
    parts = zip(data.images.split(BATCH), data.masks.split(BATCH), strict=True)
    scored = [model.score(images, masks) for images, masks in parts]
    errors = data.scores - torch.cat([s.reward for s in scored])
    multiplier = conformal_multiplier(errors, torch.cat([s.uncertainty for s in scored]), coverage)
    calibration = ReleaseCalibration(coverage=coverage, conformal=multiplier, annotations=len(errors))
    _write_record(folder, record["checkpoint"], calibration)
    return calibration


def load_released_reward(folder: Path, record: dict[str, Any]) -> ReleasedReward:
    """Open a folder whose `reward.json` holds this record; UserError where a file is missing or does not fit."""
    name, found = record["checkpoint"], record["calibration"]
    with local_copy(folder) as local:
        backbone, weight = load_release(local / name)
        bound = read_inverse(local / "V_inverse.pt", backbone.output_dim)
    return ReleasedReward(
        backbone=backbone,
        weight=weight,
        bound=bound,
        calibration=None if found is None else ReleaseCalibration(**found),
    )


def _write_record(folder: Path, checkpoint: str, calibration: ReleaseCalibration | None) -> None:
    fitted = None if calibration is None else vars(calibration)
    atomic_write_json(folder / "reward.json", {"kind": RELEASE_KIND, "checkpoint": checkpoint, "calibration": fitted})
