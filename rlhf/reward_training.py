"""From annotations to a reward model: normalise, split by photograph, train, fit, calibrate, report."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.annotated_images import (
    AnnotatedImages,
    average_repeats,
    join_annotations,
    measure_noise,
    prompt_weights,
    split_photographs,
)
from rlhf.bound import (
    RidgeHead,
    conformal_multiplier,
    discount_prompt_effects,
    effective_rank,
    fit_ridge,
    prompt_effect_shares,
    theorem_multiplier,
)
from rlhf.config import RewardConfig
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.prompts import Prompt
from rlhf.reward_model import Calibration, FeatureNetwork, RewardModel, build_backbone, whiten
from rlhf.statistics import cluster_bootstrap, rank_correlation
from rlhf.storage import atomic_write_json

MIN_EFFECTIVE_RANK = 4.0
"""Features below it have collapsed."""
OUTLYING = 0.95
"""Quantile of the uncertainty on part B beyond which an image is out of distribution."""


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

    Photographs are split into three parts: A trains the features and then fits the ridge head and V,
    B calibrates the conformal multiplier, C reports. No photograph is in two parts.
    """
    data = join_annotations(prompts, candidates, annotations)
    parts = split_photographs(data.photographs, config.parts, seed)
    a, b, c = (data.of(part) for part in parts)
    network = train_features(a, config, seed)
    head = fit_head(_features(network, a), a, config.ridge)
    features = _features(network, b)
    rank = effective_rank(features)
    if rank < MIN_EFFECTIVE_RANK:
        raise UserError(
            f"reward: features collapsed (effective rank {rank:.1f}); raise reward.decorrelation or reward.feature_dim"
        )
    errors, uncertainty = b.scores - head.reward(features), head.uncertainty(features)
    measured_noise = measure_noise(a)
    noise = float(errors.std()) if measured_noise is None else measured_noise
    conformal = conformal_multiplier(errors, uncertainty, config.coverage)
    calibration = Calibration(
        coverage=config.coverage,
        conformal=conformal,
        theorem=theorem_multiplier(head, noise=noise, delta=config.delta, parameter_norm=config.parameter_norm),
        noise=noise,
        delta=config.delta,
        ridge=config.ridge,
        parameter_norm=config.parameter_norm,
        median_uncertainty=float(uncertainty.median()),
        trust_k=config.trust_k,
        trust_b=config.trust_b,
        uncertainty_quantile=float(uncertainty.quantile(OUTLYING)),
    )
    model = RewardModel(
        network=network, head=head, calibration=calibration, backbone=config.backbone, feature_dim=config.feature_dim
    )
    model.save(out)
    report = report_figures(model, c) | {
        "effective_rank": rank,
        "feature_dim": config.feature_dim + 1,
        "is_simulated": any(row["is_simulated"] for row in annotations),
        "annotations_per_part": [len(part.keys) for part in (a, b, c)],
        "photographs_per_part": [len(part) for part in parts],
        "parts": [sorted(part) for part in parts],
    }
    atomic_write_json(out / "report.json", report)
    return report


def fit_head(features: torch.Tensor, data: AnnotatedImages, ridge: float) -> RidgeHead:
    """Ridge on features [N, d] of annotations, whose prompts' common errors are estimated and discounted.

    Without that, what tells prompts apart drowns the smaller differences between samples of one prompt,
    which alone alignment can change.
    """
    prompts = data.prompt_numbers()
    z, y = features.double(), data.scores.double()
    # The residuals are those of the differences within prompts alone, which the prompts' errors cannot mislead.
    whole = torch.ones(int(prompts.max()) + 1)
    within = fit_ridge(discount_prompt_effects(z, prompts, whole), discount_prompt_effects(y, prompts, whole), ridge)
    shares = prompt_effect_shares(y - within.reward(z), prompts)
    z, y = discount_prompt_effects(z, prompts, shares), discount_prompt_effects(y, prompts, shares)
    weights = prompt_weights(data)
    return fit_ridge(z * weights[:, None], y * weights, ridge)


def train_features(data: AnnotatedImages, config: RewardConfig, seed: int) -> FeatureNetwork:
    """Regress all marks of each image, and once more their differences between samples of one prompt.

    The differences are what alignment climbs, and a small share of the marks' variance. A penalty on
    the covariance of features keeps them apart (VICReg, arXiv:2105.04906, eq. 4).
    """
    torch.manual_seed(seed)
    network = FeatureNetwork(build_backbone(config.backbone), config.feature_dim)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.05)
    rows_of_prompt, first_rows, targets = average_repeats(data)
    weights = prompt_weights(data)
    batches = max(1, len(targets) // config.micro_batch_size)
    batches = min(batches, len(rows_of_prompt))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    bar = progress_bar(range(config.epochs), stage="reward")
    for _ in bar:
        network.train()
        losses = []
        for chosen in torch.randperm(len(rows_of_prompt), generator=generator).tensor_split(batches):
            groups = [rows_of_prompt[i] for i in chosen.tolist()]
            rows = torch.cat(groups)
            source = first_rows[rows]
            images, masks = _augment(data.images[source], data.masks[source], config.augmentation, generator)
            z = network(images, masks)
            errors = network.linear(z) - targets[rows]
            within = torch.cat([e - e.mean(0) for e in errors.split([len(g) for g in groups])])
            within = within * weights[source][:, None]
            loss = errors.square().mean() + config.within_prompt * within.square().mean()
            loss = loss + config.decorrelation * covariance_penalty(z[:, :-1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(errors[:, 3].square().mean().item())
        bar.set_postfix(error=f"{np.mean(losses):.3f}")
    whiten(network, data.images[first_rows], data.masks[first_rows])
    return network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def _augment(
    images: torch.Tensor, masks: torch.Tensor, strength: str, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror the whole batch or not; `strong` also turns it, swaps its colours and inverts them."""
    coins = torch.rand(5, generator=generator) < 0.5
    permutation = torch.randperm(3, generator=generator)
    if coins[0]:
        images, masks = images.flip(-1), masks.flip(-1)
    if strength == "strong":
        if coins[1]:
            images, masks = images.flip(-2), masks.flip(-2)
        if coins[2]:
            images, masks = images.transpose(-1, -2), masks.transpose(-1, -2)
        if coins[3]:
            images = images[:, permutation]
        if coins[4]:
            images = -images
    return images.contiguous(memory_format=torch.channels_last), masks.contiguous()


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
