"""PrefPaint's released reward network with its released V^-1, as a reward with a bound and trust weights.

A folder of kind `prefpaint-release` holds `checkpoint.pt` (or .pth, .safetensors), `V_inverse.pt` and
`reward.json`. Its reward is z @ w, in units of the paper's normalised score. Two uncertainties:

- sqrt(z' V^-1 z), which the proof of the bound needs (PrefPaint eq. 7), is reported and makes the bounds;
- ||z' V^-1||, which the released code computes, makes the trust weight as it does there (`release_trust_weight`).

The bounds need a conformal multiplier from annotations (`calibrate`); without one they are infinite.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf.config.align_config import Trust
from rlhf.data.annotated_images import AnnotatedImages
from rlhf.data.descriptions import run_backbone
from rlhf.errors import UserError
from rlhf.rewards.combination import join_batches
from rlhf.rewards.learned.backbones.prefpaint_backbone import PrefpaintBackbone, load_prefpaint_network
from rlhf.rewards.learned.bound import conformal_multiplier
from rlhf.rewards.learned.feature_network import PREFPAINT_KIND
from rlhf.rewards.scores import Scores
from rlhf.rewards.trust_weight import release_trust_weight
from rlhf.storage.atomic_files import atomic_write, atomic_write_json
from rlhf.storage.tensor_files import read_tensors
from rlhf.storage.url_path import local_copy

MAX_ASYMMETRY = 1e-3
"""Largest difference of V^-1 from its transpose, relative to its largest element; float32 leaves 1e-5."""


@dataclass(frozen=True, kw_only=True)
class PrefpaintCalibration:
    """Conformal multiplier of sqrt(z' V^-1 z), from annotations of pictures that trained nothing."""

    coverage: float
    """Stated coverage on a new annotation, in normalised scores."""
    conformal: float
    """Conformal multiplier of the uncertainty."""
    annotations: int
    """Number of annotations that it was fitted to."""


@dataclass(frozen=True, kw_only=True)
class PrefpaintBound:
    """Released V^-1, and the two norms of features that it defines."""

    inverse: torch.Tensor
    """float64 [d, d]: V^-1, made symmetric."""
    factor: torch.Tensor
    """float64 [d, d], lower triangular L with L L' = V^-1."""

    def proper(self, features: torch.Tensor) -> torch.Tensor:
        """Returns sqrt(z' V^-1 z) = ||z' L|| (PrefPaint eq. 7): float64 [B], for features [B, d]."""
        return (features.double() @ self.factor).norm(dim=1)

    def released_norm(self, features: torch.Tensor) -> torch.Tensor:
        """Returns ||z' V^-1||, the norm in PrefPaint's code: float64 [B], for features [B, d]."""
        return (features.double() @ self.inverse).norm(dim=1)


@dataclass(frozen=True, kw_only=True)
class PrefpaintReward:
    """Reward of the released network: features, last layer, V^-1, and the calibration of its bounds."""

    backbone: PrefpaintBackbone
    weight: torch.Tensor
    """float32 [d]: w, the last layer."""
    bound: PrefpaintBound
    calibration: PrefpaintCalibration | None = None

    @torch.no_grad()
    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str] = ()) -> Scores:
        """Scores images; captions are not read. Shapes as in Reward.

        Raises UserError if the reward or the uncertainty of a picture is not finite.
        """
        self.backbone.eval()
        features = run_backbone(self.backbone, images, masks)
        reward, uncertainty = features.double() @ self.weight.double(), self.bound.proper(features)
        bad = torch.nonzero(~torch.isfinite(reward + uncertainty)).flatten().tolist()
        if bad:
            raise UserError(f"reward: pictures {bad[:5]} of a batch of {len(reward)} have no finite reward; check them")
        width = torch.full_like(reward, torch.inf)
        if self.calibration is not None:
            width = self.calibration.conformal * uncertainty
        return Scores(
            reward=reward,
            uncertainty=uncertainty,
            trust_weight=release_trust_weight(self.bound.released_norm(features)),
            width=width,
        )


def read_inverse(path: Path, feature_dim: int) -> PrefpaintBound:
    """Reads V^-1 from a .pt file; raises UserError if it is unreadable, of another size, or no inverse of a V."""
    record = read_tensors(path, "download V_inverse.pt again")
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
    return PrefpaintBound(inverse=symmetric, factor=factor)


def adopt_prefpaint(checkpoint: Path, v_inverse: Path, out: Path) -> PrefpaintReward:
    """Checks the released files, copies them into the reward folder `out`, and opens it; `reward.json` comes last."""
    backbone, weight = load_prefpaint_network(checkpoint)
    bound = read_inverse(v_inverse, backbone.output_dim)
    if (out / "reward.json").is_file():
        (out / "reward.json").unlink()
    name = f"checkpoint{checkpoint.suffix}"
    _copy(checkpoint, out / name)
    _copy(v_inverse, out / "V_inverse.pt")
    _write_record(out, name, None)
    return PrefpaintReward(backbone=backbone, weight=weight, bound=bound)


def _copy(source: Path, target: Path) -> None:
    atomic_write(target, lambda temporary: shutil.copyfile(source, temporary))


def calibrate(folder: Path, data: AnnotatedImages, coverage: float) -> PrefpaintCalibration:
    """Fits the conformal multiplier to annotated pictures, and writes it into the folder's `reward.json`.

    The scores are those of `join_annotations`, normalised as in the paper. The coverage holds for pictures like
    these if none of them trained the checkpoint. Raises UserError if there are too few.
    """
    record = json.loads((folder / "reward.json").read_text())
    model = load_prefpaint_reward(folder, record, torch.device("cpu"), trust="auto")
    batches = map(data.pictures.show, data.pictures.batches(data.keys))
    scores = join_batches([model.score(images, masks) for images, masks in batches])
    assert scores.uncertainty is not None
    errors = data.scores - scores.reward
    multiplier = conformal_multiplier(errors, scores.uncertainty, coverage)
    calibration = PrefpaintCalibration(coverage=coverage, conformal=multiplier, annotations=len(errors))
    _write_record(folder, record["checkpoint"], calibration)
    return calibration


def load_prefpaint_reward(
    folder: Path, record: dict[str, Any], device: torch.device, *, trust: Trust
) -> PrefpaintReward:
    """Opens a folder whose `reward.json` holds `record`, its network on `device`.

    Raises UserError if a file is missing or does not fit, or if `trust` is `proper`: the trust weights are always those
    of the release.
    """
    if trust == "proper":
        raise UserError(
            f"{folder}: align.trust is `proper`, but PrefPaint's released reward has the trust weights of its own code "
            "alone; leave align.trust at `auto`, or fit a reward on its features with "
            f"reward.backbone={PREFPAINT_KIND}:FILE"
        )
    name, found = record["checkpoint"], record["calibration"]
    with local_copy(folder) as local:
        backbone, weight = load_prefpaint_network(local / name)
        bound = read_inverse(local / "V_inverse.pt", backbone.output_dim)
    return PrefpaintReward(
        backbone=backbone.to(device),
        weight=weight,
        bound=bound,
        calibration=None if found is None else PrefpaintCalibration(**found),
    )


def _write_record(folder: Path, checkpoint: str, calibration: PrefpaintCalibration | None) -> None:
    fitted = None if calibration is None else vars(calibration)
    atomic_write_json(folder / "reward.json", {"kind": PREFPAINT_KIND, "checkpoint": checkpoint, "calibration": fitted})
