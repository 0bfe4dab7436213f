"""Trains a reward model from annotations: normalise, split by photograph, train, fit, calibrate, report."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch

from rlhf.config.run_config import RewardConfig
from rlhf.data.annotated_images import (
    AnnotatedImages,
    annotations_of,
    distinct_images,
    join_annotations,
    measure_noise,
    measure_scores,
    split_photographs,
)
from rlhf.data.candidate_table import Key
from rlhf.data.normalisation import Normalisation
from rlhf.data.prompts import AnyPrompt
from rlhf.data.ranks import ALONE, Ranks
from rlhf.data.rows import AnnotationRow
from rlhf.errors import UserError
from rlhf.rewards.learned.bound import (
    PromptEffects,
    RidgeHead,
    conformal_multiplier,
    effective_rank,
    require_calibration,
    spectrum,
    theorem_multiplier,
)
from rlhf.rewards.learned.feature_network import FeatureNetwork
from rlhf.rewards.learned.feature_training import describe_rows, train_features, with_descriptions
from rlhf.rewards.learned.reward_figures import bound_figures, group_figures, rank_by_trust, score_annotations
from rlhf.rewards.learned.reward_head import choose_ridge, correct_head, fit_first_head
from rlhf.rewards.learned.reward_memory import AnnotatedFeatures, RewardMemory, annotation_id, no_prompts, with_features
from rlhf.rewards.learned.reward_model import Calibration, RewardModel
from rlhf.rewards.learned.reward_page import write_reward_page
from rlhf.rewards.learned.reward_report import AnnotationCounts, EpochFigures, RewardReport, UpdatedReport
from rlhf.rewards.learned.uncertainty_figures import coverage_by_level, risk_coverage
from rlhf.storage.atomic_files import atomic_write_json, read_json_lines

MIN_EFFECTIVE_RANK = 4.0
"""Effective rank below which the features have collapsed."""
FIRST_RIDGE = 1.0
"""lambda of the head of part A, which does not enter V."""
OUTLYING = 0.95
"""Quantile of the uncertainty on part C beyond which an image counts as out of distribution."""


@dataclass(frozen=True, kw_only=True)
class FittedReward:
    """Reward model with the annotations of parts B and C, and figures of its features."""

    model: RewardModel
    effective_rank: float
    """Effective rank of Z'Z on part B."""
    spectrum: torch.Tensor
    """float64 [d]: eigenvalues of Z'Z on part B over their sum, largest first."""
    corrected_on: AnnotatedFeatures
    """Annotations of part B."""
    calibrated_on: AnnotatedFeatures
    """Annotations of part C."""
    is_noise_measured: bool
    """Whether the noise B comes from images annotated repeatedly; otherwise from the residuals of A's head."""


def train_reward(
    prompts: Mapping[str, AnyPrompt],
    candidates: Mapping[Key, torch.Tensor],
    annotations: list[AnnotationRow],
    out: Path,
    config: RewardConfig,
    *,
    seed: int,
    command: str | None = None,
    ranks: Ranks = ALONE,
) -> RewardReport:
    """Trains, fits and calibrates a reward model into `out`; returns the content of `out/report.json`.

    Every rank of `ranks` calls it with the same arguments and `out`, a folder that all reach; the first one writes.
    What a fixed backbone says of the pictures stays in `out/pictures`, and is not computed again.
    Photographs are split into four parts: A trains the features, a first head, lambda and the noise; B corrects
    the head and makes V; C calibrates the conformal multiplier; D reports. No photograph is in two parts.
    `reward.json` is removed first and written last, so a folder that holds it is complete. The page quotes `command`.
    Raises UserError if the features have collapsed, or part C is too small for the stated coverage.
    """
    normalisation = measure_scores(prompts, candidates, annotations)
    data = replace(join_annotations(prompts, candidates, annotations, normalisation), ranks=ranks)
    a, b, c, d = _prepare(data, config, seed, out)
    fitted = fit_reward(a, b, c, config, seed, out)
    of_d = with_features(features_of(fitted.model.network, d), d)
    report = measure_reward(
        fitted,
        of_d,
        prompts,
        count_annotations(annotations, [a, b, c, d]),
        unknown_annotations=len(annotations) - len(data.keys),
        learning_curve=read_learning_curve(out),
        command=command,
    )
    if ranks.rank == 0:
        write_reward_page(out, report, d)
        memory = _remember(fitted, of_d, annotations_of(candidates, annotations))
        save_reward(fitted.model, memory, normalisation, report, out)
        (out / "training.pt").unlink(missing_ok=True)
    return report


def _remember(fitted: FittedReward, report: AnnotatedFeatures, annotations: list[AnnotationRow]) -> RewardMemory:
    return RewardMemory(
        seen=no_prompts(fitted.model.feature_dim + 1).added(fitted.corrected_on),
        calibration=fitted.calibrated_on,
        report=report,
        seen_ids=frozenset(map(annotation_id, annotations)),
    )


def _prepare(data: AnnotatedImages, config: RewardConfig, seed: int, out: Path) -> list[AnnotatedImages]:
    """Returns the four parts, described if the backbone is fixed. Raises UserError if part C is too small."""
    parts = split_photographs(data.photographs, config.parts, seed)
    require_calibration(len(data.of(parts[2]).keys), config.coverage)
    if data.ranks.rank == 0:
        (out / "reward.json").unlink(missing_ok=True)
    whole = with_descriptions(data, config, seed, trained=data.of(parts[0]).keys, folder=out / "pictures")
    return [whole.of(part) for part in parts]


def measure_reward(
    fitted: FittedReward,
    data: AnnotatedFeatures,
    prompts: Mapping[str, AnyPrompt],
    counts: AnnotationCounts,
    *,
    unknown_annotations: int,
    learning_curve: list[EpochFigures],
    command: str | None,
) -> RewardReport:
    """Returns the report of a reward model on part D, which it has never seen, with figures of parts B and C."""
    head, calibrated_on = fitted.model.head, fitted.calibrated_on
    scored = score_annotations(head, data, prompts)
    errors = calibrated_on.scores - head.reward(calibrated_on.features)
    levels = coverage_by_level(errors, head.uncertainty(calibrated_on.features), scored)
    return RewardReport(
        **vars(bound_figures(head, fitted.model.calibration, data)),
        **vars(group_figures(fitted.model, scored)),
        **vars(risk_coverage(scored)),
        **vars(counts),
        coverage_by_level=levels,
        effective_rank=fitted.effective_rank,
        spectrum=fitted.spectrum.tolist(),
        is_noise_measured=fitted.is_noise_measured,
        trusted=rank_by_trust(scored, fitted.model.calibration.conformal),
        feature_dim=fitted.model.feature_dim + 1,
        unknown_annotations=unknown_annotations,
        learning_curve=learning_curve,
        command=command,
    )


def count_annotations(annotations: list[AnnotationRow], parts: list[AnnotatedImages]) -> AnnotationCounts:
    """Returns the photographs and the sizes of the parts, and the number of simulated annotations."""
    simulated = sum(bool(row["is_simulated"]) for row in annotations)
    return AnnotationCounts(
        is_simulated=simulated > 0,
        simulated_annotations=simulated,
        annotations=len(annotations),
        annotators=len({row["annotator"] for row in annotations}),
        annotations_per_part=[len(part.keys) for part in parts],
        candidates_per_part=[len(set(part.keys)) for part in parts],
        photographs_per_part=[len(set(part.photographs)) for part in parts],
        parts=[sorted(set(part.photographs)) for part in parts],
    )


def describe_doubts(report: RewardReport) -> list[str]:
    """Returns warnings about facts that the annotations leave unknown, in words."""
    doubts = []
    if report.annotators == 1:
        doubts.append("one annotator gave all scores: how far people agree is unknown, and the bound is of that person")
    if not report.is_noise_measured:
        doubts.append("hardly an image was annotated twice: the noise B is taken from the head's residuals")
    return doubts


def read_learning_curve(out: Path) -> list[EpochFigures]:
    """Reads `learning_curve.jsonl`; empty if no curve was recorded."""
    rows = read_json_lines(out / "learning_curve.jsonl", {"epoch": int}, "train the reward again")
    return [cast("EpochFigures", row) for row in rows]


def save_reward(
    model: RewardModel,
    memory: RewardMemory,
    normalisation: Normalisation,
    report: RewardReport | UpdatedReport,
    out: Path,
) -> None:
    """Writes a reward folder; `reward.json`, without which a folder is no reward, is removed first and written last."""
    (out / "reward.json").unlink(missing_ok=True)
    model.network.cpu()
    memory.save(out)
    normalisation.save(out)
    atomic_write_json(out / "report.json", asdict(report))
    model.save(out)


def fit_reward(
    a: AnnotatedImages, b: AnnotatedImages, c: AnnotatedImages, config: RewardConfig, seed: int, out: Path | None = None
) -> FittedReward:
    """Fits a reward model to the parts A, B and C of the data.

    Raises UserError if the features have collapsed, or C is too small for the stated coverage.
    """
    network = train_features(a, config, seed, out)
    of_a, of_b, of_c = (features_of(network, part) for part in (a, b, c))
    rank = _require_rank(of_b, len(set(a.photographs)))
    first, effects = fit_first_head(of_a, a, FIRST_RIDGE)
    ridge = choose_ridge(of_a, a, FIRST_RIDGE, seed) if config.ridge == "auto" else config.ridge
    head = correct_head(first, effects, of_b, b, ridge)
    measured_noise = measure_noise(a)
    noise = float((a.scores - first.reward(of_a)).std()) if measured_noise is None else measured_noise
    calibrated_on = with_features(of_c, c)
    calibration = fit_calibration(head, calibrated_on, config, noise=noise, effects=effects)
    model = RewardModel(
        network=network, head=head, calibration=calibration, backbone=config.backbone, feature_dim=config.feature_dim
    )
    return FittedReward(
        model=model,
        effective_rank=rank,
        spectrum=spectrum(of_b),
        corrected_on=with_features(of_b, b),
        calibrated_on=calibrated_on,
        is_noise_measured=measured_noise is not None,
    )


def _require_rank(features: torch.Tensor, photographs: int) -> float:
    """Returns the effective rank; raises UserError if the features, learned on `photographs`, have collapsed."""
    rank = effective_rank(features)
    if rank < MIN_EFFECTIVE_RANK:
        raise UserError(
            f"reward: features collapsed (effective rank {rank:.1f}), learned on photographs: {photographs}; "
            "annotate more, or raise reward.decorrelation or reward.feature_dim"
        )
    return rank


def fit_calibration(
    head: RidgeHead,
    part: AnnotatedFeatures,
    settings: RewardConfig | Calibration,
    *,
    noise: float,
    effects: PromptEffects,
) -> Calibration:
    """Fits multipliers and scale of the head's uncertainty on part C; raises UserError if C is too small for them."""
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
        median_released_norm=float(head.released_norm(part.features).median()),
    )


@torch.no_grad()
def features_of(network: FeatureNetwork, data: AnnotatedImages) -> torch.Tensor:
    """Returns z of all rows, [N, d]; images that were annotated repeatedly are described once."""
    network.eval()
    first_rows, numbers = distinct_images(data)
    return network.features_of(describe_rows(network, data, first_rows))[numbers]
