"""From annotations to a reward model: normalise, split by photograph, train, fit, calibrate, report."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from rlhf.bound import (
    conformal_multiplier,
    effective_rank,
    fit_ridge,
    theorem_multiplier,
)
from rlhf.config import RewardConfig
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.prompts import Prompt
from rlhf.reward_model import Calibration, FeatureNetwork, RewardModel, build_backbone
from rlhf.statistics import cluster_bootstrap, rank_correlation
from rlhf.storage import atomic_write_json

MIN_REPEATS = 10
"""Repeated annotations needed to measure the noise; with fewer, the head's residuals stand in."""
MIN_EFFECTIVE_RANK = 4.0
"""Features below it have collapsed."""


@dataclass(frozen=True, kw_only=True)
class AnnotatedImages:
    """One row per annotation: [N] throughout."""

    images: torch.Tensor
    masks: torch.Tensor
    scores: torch.Tensor
    """Normalised per source x hole family and per annotator."""
    keys: list[tuple[str, int]]
    photographs: list[str]

    def of(self, photographs: set[str]) -> "AnnotatedImages":
        """The rows of some photographs."""
        rows = [i for i, name in enumerate(self.photographs) if name in photographs]
        return AnnotatedImages(
            images=self.images[rows],
            masks=self.masks[rows],
            scores=self.scores[rows],
            keys=[self.keys[i] for i in rows],
            photographs=[self.photographs[i] for i in rows],
        )


def train_reward(
    prompts: dict[str, Prompt],
    candidates: dict[tuple[str, int], torch.Tensor],
    annotations: list[dict[str, Any]],
    out: Path,
    config: RewardConfig,
    *,
    seed: int,
) -> dict[str, Any]:
    """Train, fit and calibrate a reward model into `out`; returns the figures of `out/report.json`.

    Photographs are split into four parts: A trains the features, B fits the ridge head and V,
    C calibrates the conformal multiplier, D reports. No photograph is in two parts.
    """
    data = join_annotations(prompts, candidates, annotations)
    parts = split_photographs(data.photographs, config.parts, seed)
    a, b, c, d = (data.of(part) for part in parts)
    network = train_features(a, config, seed)
    features_b, features_c = _features(network, b), _features(network, c)
    head = fit_ridge(features_b, b.scores, config.ridge)
    rank = effective_rank(features_b)
    if rank < MIN_EFFECTIVE_RANK:
        raise UserError(f"reward: features collapsed (effective rank {rank:.1f}); raise reward.decorrelation")
    measured_noise = measure_noise(a)
    noise = float((b.scores - head.reward(features_b)).std()) if measured_noise is None else measured_noise
    uncertainty_c = head.uncertainty(features_c)
    conformal = conformal_multiplier(c.scores - head.reward(features_c), uncertainty_c, config.coverage)
    calibration = Calibration(
        coverage=config.coverage,
        conformal=conformal,
        theorem=theorem_multiplier(head, noise=noise, delta=config.delta, parameter_norm=config.parameter_norm),
        noise=noise,
        delta=config.delta,
        ridge=config.ridge,
        parameter_norm=config.parameter_norm,
        median_uncertainty=float(uncertainty_c.median()),
        trust_k=config.trust_k,
        trust_b=config.trust_b,
    )
    model = RewardModel(
        network=network, head=head, calibration=calibration, backbone=config.backbone, feature_dim=config.feature_dim
    )
    model.save(out)
    report = report_figures(model, d) | {
        "effective_rank": rank,
        "feature_dim": config.feature_dim + 1,
        "is_simulated": any(row["is_simulated"] for row in annotations),
        "annotations_per_part": [len(part.keys) for part in (a, b, c, d)],
        "photographs_per_part": [len(part) for part in parts],
        "parts": [sorted(part) for part in parts],
    }
    atomic_write_json(out / "report.json", report)
    return report


def join_annotations(
    prompts: dict[str, Prompt], candidates: dict[tuple[str, int], torch.Tensor], annotations: list[dict[str, Any]]
) -> AnnotatedImages:
    """Images, masks and normalised scores of all annotations that have a candidate.

    A score loses its annotator's mean deviation and is then standardised within source x hole
    family (PrefPaint, appendix A; the standard deviation is what its text means).
    Raises UserError where no annotation fits, or all scores are the same.
    """
    rows = [r for r in annotations if (r["prompt_id"], r["sample_index"]) in candidates]
    if not rows:
        raise UserError("annotations: none belongs to these candidates; check that both are of one run")
    scores = np.array([r["annotation_score"] for r in rows])
    if scores.std() == 0:
        raise UserError("annotations: all scores are the same, so there is nothing to learn")
    groups = [(prompts[r["prompt_id"]].source, prompts[r["prompt_id"]].hole) for r in rows]
    residuals = scores - _group_means(scores, groups)
    scores = scores - _group_means(residuals, [r["annotator"] for r in rows])
    deviation = np.sqrt(np.maximum(_group_means((scores - _group_means(scores, groups)) ** 2, groups), 1e-6))
    normalised = (scores - _group_means(scores, groups)) / deviation
    keys = [(r["prompt_id"], r["sample_index"]) for r in rows]
    return AnnotatedImages(
        images=torch.stack([candidates[k] for k in keys]),
        masks=torch.stack([prompts[k[0]].mask for k in keys]),
        scores=torch.from_numpy(normalised).float(),
        keys=keys,
        photographs=[prompts[k[0]].photograph for k in keys],
    )


def _group_means(values: np.ndarray, groups: list[Any]) -> np.ndarray:
    """[N]: the mean of each row's group."""
    members = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    means = np.empty_like(values)
    for rows in members.values():
        means[rows] = values[rows].mean()
    return means


def split_photographs(photographs: list[str], shares: tuple[float, ...], seed: int) -> list[set[str]]:
    """Disjoint sets of photographs in about the given shares, each with at least one."""
    names = sorted(set(photographs))
    if len(names) < len(shares):
        raise UserError(f"reward: {len(names)} photographs cannot be split into {len(shares)} parts; annotate more")
    order = np.random.default_rng([seed, 13]).permutation(len(names))
    cuts = np.round(np.cumsum(shares) / sum(shares) * len(names)).astype(int)
    for i in range(len(cuts)):
        least = cuts[i - 1] + 1 if i else 1
        cuts[i] = min(max(cuts[i], least), len(names) - (len(cuts) - 1 - i))
    starts = [0, *cuts[:-1]]
    return [{names[j] for j in order[start:stop]} for start, stop in zip(starts, cuts, strict=True)]


def measure_noise(data: AnnotatedImages) -> float | None:
    """B: standard deviation of a single score around the mean of all, from images scored twice."""
    scores = defaultdict(list)
    for key, score in zip(data.keys, data.scores.tolist(), strict=True):
        scores[key].append(score)
    differences = [s[0] - s[1] for s in scores.values() if len(s) > 1]
    if len(differences) < MIN_REPEATS:
        return None
    return float(np.sqrt(np.mean(np.square(differences)) / 2))


def train_features(data: AnnotatedImages, config: RewardConfig, seed: int) -> FeatureNetwork:
    """Regress scores, with a penalty on the covariance of features (VICReg, arXiv:2105.04906, eq. 4)."""
    torch.manual_seed(seed)
    network = FeatureNetwork(build_backbone(config.backbone), config.feature_dim)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.02)
    batches = max(1, len(data.keys) // config.micro_batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    bar = progress_bar(range(config.epochs), stage="reward")
    for _ in bar:
        network.train()
        losses = []
        for rows in torch.randperm(len(data.keys), generator=generator).tensor_split(batches):
            images, masks = _mirror_half(data.images[rows], data.masks[rows], generator)
            z = network(images, masks)
            regression = F.mse_loss(network.linear(z)[:, 0], data.scores[rows])
            loss = regression + config.decorrelation * covariance_penalty(z[:, :-1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(regression.item())
        bar.set_postfix(error=f"{np.mean(losses):.3f}")
    return network.eval()


def _mirror_half(
    images: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    flips = torch.rand(len(images), generator=generator) < 0.5
    images, masks = images.clone(), masks.clone()
    images[flips], masks[flips] = images[flips].flip(-1), masks[flips].flip(-1)
    return images, masks


def covariance_penalty(features: torch.Tensor) -> torch.Tensor:
    """Sum of squared off-diagonal covariances over the dimension; features [B, d]."""
    centred = features - features.mean(0)
    covariance = centred.T @ centred / max(1, len(features) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / features.shape[1]


@torch.no_grad()
def _features(network: FeatureNetwork, data: AnnotatedImages) -> torch.Tensor:
    network.eval()
    return torch.cat([network(i, m) for i, m in zip(data.images.split(256), data.masks.split(256), strict=True)])


def report_figures(model: RewardModel, data: AnnotatedImages) -> dict[str, Any]:
    """Measured on photographs that the model has never seen: accuracy, coverage, width, correlations."""
    scored = model.score(data.images, data.masks)
    reward, uncertainty = scored.reward.numpy(), scored.uncertainty.numpy()
    scores = data.scores.numpy()
    errors = np.abs(scores - reward)
    covered = (errors <= model.calibration.conformal * uncertainty).astype(float)
    accuracy = pair_accuracy(reward, scores, data.keys)
    return {
        "calibration": asdict(model.calibration),
        "coverage_stated": model.calibration.coverage,
        "coverage_measured": asdict(cluster_bootstrap(covered, data.photographs)),
        "mean_width": float(2 * model.calibration.conformal * uncertainty.mean()),
        "rank_correlation_error_uncertainty": asdict(
            cluster_bootstrap(np.stack([errors, uncertainty], 1), data.photographs, statistic=rank_correlation)
        ),
        "rank_correlation_reward_score": asdict(
            cluster_bootstrap(np.stack([reward, scores], 1), data.photographs, statistic=rank_correlation)
        ),
        "pair_accuracy": accuracy,
        "reliability": reliability(errors, uncertainty, model.calibration.conformal),
    }


def pair_accuracy(reward: np.ndarray, scores: np.ndarray, keys: list[tuple[str, int]]) -> float | None:
    """Share of pairs of one prompt's samples, scored differently, that the reward orders as the scores do."""
    members = defaultdict(list)
    for index, key in enumerate(keys):
        members[key[0]].append(index)
    hits = [
        (reward[i] > reward[j]) == (scores[i] > scores[j])
        for rows in members.values()
        for n, i in enumerate(rows)
        for j in rows[:n]
        if scores[i] != scores[j] and keys[i] != keys[j]
    ]
    return float(np.mean(hits)) if hits else None


def reliability(errors: np.ndarray, uncertainty: np.ndarray, conformal: float) -> list[dict[str, float]]:
    """Per fifth of the uncertainty: its mean, the mean error, the bound's mean, the coverage."""
    rows = []
    for part in np.array_split(np.argsort(uncertainty), 5):
        if len(part):
            rows.append(
                {
                    "uncertainty": float(uncertainty[part].mean()),
                    "error": float(errors[part].mean()),
                    "bound": float(conformal * uncertainty[part].mean()),
                    "coverage": float((errors[part] <= conformal * uncertainty[part]).mean()),
                }
            )
    return rows
