"""From annotations to a reward model: normalise, split by photograph, train, fit, calibrate, report."""

from pathlib import Path
from typing import Any

import torch

from rlhf.annotated_images import (
    AnnotatedImages,
    annotations_of,
    average_repeats,
    join_annotations,
    measure_noise,
    measure_scores,
    split_photographs,
)
from rlhf.bound import PromptEffects, RidgeHead, conformal_multiplier, effective_rank, theorem_multiplier
from rlhf.config import RewardConfig
from rlhf.errors import UserError
from rlhf.feature_training import train_features
from rlhf.normalisation import Normalisation
from rlhf.prompts import Prompt
from rlhf.reward_figures import report_figures
from rlhf.reward_head import choose_ridge, correct_head, fit_first_head
from rlhf.reward_memory import DescribedAnnotations, RewardMemory, annotation_id, described, no_prompts
from rlhf.reward_model import Calibration, FeatureNetwork, RewardModel, describe
from rlhf.storage import atomic_write_json

MIN_EFFECTIVE_RANK = 4.0
"""Features below it have collapsed."""
FIRST_RIDGE = 1.0
"""lambda of the head of part A, which V has no part in."""
OUTLYING = 0.95
"""Quantile of the uncertainty on part C beyond which an image is out of distribution."""


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

    Photographs are split into four parts: A trains the features, a first head, lambda and B; B corrects
    the head and makes V; C calibrates the conformal multiplier; D reports. No photograph is in two parts.
    """
    normalisation = measure_scores(prompts, candidates, annotations)
    data = join_annotations(prompts, candidates, annotations, normalisation)
    parts = split_photographs(data.photographs, config.parts, seed)
    a, b, c, d = (data.of(part) for part in parts)
    model, rank = fit_reward(a, b, c, config, seed, out)
    of_b, of_c, of_d = (described(features_of(model.network, part), part) for part in (b, c, d))
    seen = no_prompts(config.feature_dim + 1).added(of_b)
    report = report_figures(model.head, model.calibration, of_d) | {
        "effective_rank": rank,
        "feature_dim": config.feature_dim + 1,
        "is_simulated": any(row["is_simulated"] for row in annotations),
        "annotations_per_part": [len(part.keys) for part in (a, b, c, d)],
        "photographs_per_part": [len(part) for part in parts],
        "parts": [sorted(part) for part in parts],
    }
    taken_in = frozenset(map(annotation_id, annotations_of(candidates, annotations)))
    memory = RewardMemory(seen=seen, calibration=of_c, report=of_d, taken_in=taken_in)
    save_reward(model, memory, normalisation, report, out)
    (out / "training.pt").unlink(missing_ok=True)
    return report


def save_reward(
    model: RewardModel, memory: RewardMemory, normalisation: Normalisation, report: dict[str, Any], out: Path
) -> None:
    """Write a whole reward folder; without `reward.json`, which is not there meanwhile, it is none."""
    (out / "reward.json").unlink(missing_ok=True)
    memory.save(out)
    normalisation.save(out)
    atomic_write_json(out / "report.json", report)
    model.save(out)


def fit_reward(
    a: AnnotatedImages, b: AnnotatedImages, c: AnnotatedImages, config: RewardConfig, seed: int, out: Path | None = None
) -> tuple[RewardModel, float]:
    """The reward model of three parts of the data, and the effective rank of B's features.

    Raises UserError where the features have collapsed, or C is too small for the stated coverage.
    """
    network = train_features(a, config, seed, out)
    of_a, of_b, of_c = (features_of(network, part) for part in (a, b, c))
    rank = effective_rank(of_b)
    if rank < MIN_EFFECTIVE_RANK:
        raise UserError(
            f"reward: features collapsed (effective rank {rank:.1f}); raise reward.decorrelation or reward.feature_dim"
        )
    first, effects = fit_first_head(of_a, a, FIRST_RIDGE)
    ridge = choose_ridge(of_a, a, FIRST_RIDGE, seed) if config.ridge == "auto" else config.ridge
    head = correct_head(first, effects, of_b, b, ridge)
    measured_noise = measure_noise(a)
    noise = float((a.scores - first.reward(of_a)).std()) if measured_noise is None else measured_noise
    calibration = fit_calibration(head, described(of_c, c), config, noise=noise, effects=effects)
    model = RewardModel(
        network=network, head=head, calibration=calibration, backbone=config.backbone, feature_dim=config.feature_dim
    )
    return model, rank


def fit_calibration(
    head: RidgeHead,
    part: DescribedAnnotations,
    settings: RewardConfig | Calibration,
    *,
    noise: float,
    effects: PromptEffects,
) -> Calibration:
    """Multipliers and scale of the head's uncertainty, on part C; UserError where C is too small for the coverage."""
    uncertainty = head.uncertainty(part.features)
    theorem = theorem_multiplier(head, noise=noise, delta=settings.delta, parameter_norm=settings.parameter_norm)
    return Calibration(
        coverage=settings.coverage,
        conformal=conformal_multiplier(part.scores - head.reward(part.features), uncertainty, settings.coverage),
        theorem=theorem,
        noise=noise,
        delta=settings.delta,
        ridge=head.ridge,
        parameter_norm=settings.parameter_norm,
        median_uncertainty=float(uncertainty.median()),
        trust_k=settings.trust_k,
        trust_b=settings.trust_b,
        uncertainty_quantile=float(uncertainty.quantile(OUTLYING)),
        within=effects.within,
        between=effects.between,
    )


@torch.no_grad()
def features_of(network: FeatureNetwork, data: AnnotatedImages) -> torch.Tensor:
    """z of all rows, [N, d]; images that were annotated repeatedly are described once."""
    network.eval()
    _, first_rows, _ = average_repeats(data)
    numbers = {key: number for number, key in enumerate(data.keys[row] for row in first_rows.tolist())}
    z = network.features_of(describe(network, data.images[first_rows], data.masks[first_rows]))
    return z[[numbers[key] for key in data.keys]]
