"""Measures a reward model on photographs that it has never seen."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from rlhf.data.prompts import AnyPrompt
from rlhf.reports.intervals import Estimate, estimate_figure, estimate_share, rank_correlation
from rlhf.rewards.learned.bound import RidgeHead
from rlhf.rewards.learned.reward_memory import AnnotatedFeatures
from rlhf.rewards.learned.reward_model import Calibration, RewardModel
from rlhf.rewards.learned.reward_report import (
    BoundFigures,
    CalibrationPoint,
    GroupErrors,
    GroupFigures,
    PairAccuracy,
    RankedCandidate,
    Reliability,
    TrustEnds,
)

SIZE_GROUPS = 5
CALIBRATION_GROUPS = 10
TRUSTED = 8
"""Number of candidates that the page shows from either end of the uncertainty."""


@dataclass(frozen=True, kw_only=True)
class HeldOutAnnotations:
    """N annotations beside the reward and the uncertainty of their images, in standard deviations of the scores."""

    reward: np.ndarray
    """[N]: predicted scores."""
    uncertainty: np.ndarray
    """[N]: uncertainties of the predictions."""
    scores: np.ndarray
    """[N]: normalised scores."""
    keys: list[tuple[str, int]]
    """[N]: prompt id and sample index."""
    photographs: list[str]
    """[N]: names of the photographs."""
    sources: list[str]
    """[N]: data sets of the photographs."""
    holes: list[str]
    """[N]: hole families."""
    hole_shares: np.ndarray
    """[N]: repainted shares of the images, 0 to 1."""

    @property
    def errors(self) -> np.ndarray:
        """|score - reward|, [N]."""
        return np.abs(self.scores - self.reward)


def score_annotations(head: RidgeHead, data: AnnotatedFeatures, prompts: Mapping[str, AnyPrompt]) -> HeldOutAnnotations:
    """Scores the images of annotations by the head, and looks up their prompts."""
    of = [prompts[prompt_id] for prompt_id, _ in data.keys]
    hole_shares = {name: float(prompts[name].mask.mean()) for name in {prompt_id for prompt_id, _ in data.keys}}
    return HeldOutAnnotations(
        reward=head.reward(data.features).numpy(),
        uncertainty=head.uncertainty(data.features).numpy(),
        scores=data.scores.numpy(),
        keys=data.keys,
        photographs=data.photographs,
        sources=[prompt.source for prompt in of],
        holes=[prompt.hole for prompt in of],
        hole_shares=np.array([hole_shares[prompt_id] for prompt_id, _ in data.keys]),
    )


def group_figures(model: RewardModel, data: HeldOutAnnotations) -> GroupFigures:
    """Measures accuracy and errors by kind of prompt; intervals are over photographs."""
    covered = (data.errors <= model.calibration.conformal * data.uncertainty).astype(float)
    return GroupFigures(
        pair_accuracy_interval=pair_accuracy_interval(data),
        error_by_source=errors_by(data, data.sources, covered),
        error_by_hole=errors_by(data, data.holes, covered),
        error_by_hole_size=errors_by(data, hole_sizes(data), covered),
        calibration_curve=calibration_curve(data),
    )


def bound_figures(head: RidgeHead, calibration: Calibration, data: AnnotatedFeatures) -> BoundFigures:
    """Measures coverage, width, correlations and errors; intervals are over photographs."""
    reward, uncertainty = head.reward(data.features).numpy(), head.uncertainty(data.features).numpy()
    scores, photographs = data.scores.numpy(), data.photographs
    errors = np.abs(scores - reward)
    covered = (errors <= calibration.conformal * uncertainty).astype(float)

    def correlation(*columns: np.ndarray) -> Estimate:
        """Returns the rank correlation of two columns, with its interval."""
        return estimate_figure(np.stack(columns, 1), photographs, statistic=rank_correlation)

    return BoundFigures(
        calibration=calibration,
        coverage_stated=calibration.coverage,
        coverage_measured=estimate_share(covered, photographs),
        mean_width=float(2 * calibration.conformal * uncertainty.mean()),
        mean_theorem_width=float(2 * calibration.theorem * uncertainty.mean()),
        rank_correlation_error_uncertainty=correlation(errors, uncertainty),
        rank_correlation_reward_score=correlation(reward, scores),
        pair_accuracy=pair_accuracy(reward, scores, data.keys),
        reliability=reliability(errors, uncertainty, calibration.conformal),
        error=estimate_figure(errors, photographs),
    )


def pair_accuracy(reward: np.ndarray, scores: np.ndarray, keys: list[tuple[str, int]]) -> float | None:
    """Returns the share of pairs that the reward orders as the scores do; None if there is no pair.

    A pair is two samples of one prompt with different scores.
    """
    hits, _ = _ordered_pairs(reward, scores, keys)
    return float(np.mean(hits)) if hits else None


def pair_accuracy_interval(data: HeldOutAnnotations) -> PairAccuracy | None:
    """Returns `pair_accuracy` with its interval and the number of pairs; None if there is no pair."""
    hits, rows = _ordered_pairs(data.reward, data.scores, data.keys)
    if not hits:
        return None
    estimate = estimate_share(np.array(hits, dtype=float), [data.photographs[row] for row in rows])
    return PairAccuracy(**asdict(estimate), pairs=len(hits))


def _ordered_pairs(reward: np.ndarray, scores: np.ndarray, keys: list[tuple[str, int]]) -> tuple[list[bool], list[int]]:
    """Returns for every pair whether reward and scores order it alike, and one of its two rows."""
    members = defaultdict(list)
    for index, key in enumerate(keys):
        members[key[0]].append(index)
    pairs = [
        ((reward[i] > reward[j]) == (scores[i] > scores[j]), i)
        for rows in members.values()
        for n, i in enumerate(rows)
        for j in rows[:n]
        if scores[i] != scores[j] and keys[i] != keys[j]
    ]
    return [bool(hit) for hit, _ in pairs], [row for _, row in pairs]


def reliability(errors: np.ndarray, uncertainty: np.ndarray, conformal: float) -> list[Reliability]:
    """Returns error, bound and coverage by fifths of the uncertainty, from the most certain."""
    return [
        Reliability(
            uncertainty=float(uncertainty[part].mean()),
            error=float(errors[part].mean()),
            bound=float(conformal * uncertainty[part].mean()),
            coverage=float((errors[part] <= conformal * uncertainty[part]).mean()),
        )
        for part in np.array_split(np.argsort(uncertainty), 5)
        if len(part)
    ]


def errors_by(data: HeldOutAnnotations, groups: list[str], covered: np.ndarray) -> list[GroupErrors]:
    """Returns size, mean |score - reward| and coverage of every group, in the order of names.

    Shapes: groups and covered [N]; `covered` is 1 for rows within the bound.
    """
    labels, errors = np.array(groups), data.errors
    table = []
    for name in sorted(set(groups)):
        rows = np.flatnonzero(labels == name)
        photographs = [data.photographs[row] for row in rows]
        table.append(
            GroupErrors(
                name=name,
                annotations=len(rows),
                candidates=len({data.keys[row] for row in rows}),
                photographs=len(set(photographs)),
                error=estimate_figure(errors[rows], photographs),
                coverage=estimate_share(covered[rows], photographs),
            )
        )
    return table


def hole_sizes(data: HeldOutAnnotations) -> list[str]:
    """Returns for each row the name of its prompt's fifth, by the hole's share of the image: [N].

    Holes of one size are in one fifth, so there may be fewer than five.
    """
    share_of = {key[0]: float(share) for key, share in zip(data.keys, data.hole_shares, strict=True)}
    shares = np.array(list(share_of.values()))
    below, upto = (np.searchsorted(np.sort(shares), shares, side=side) for side in ("left", "right"))
    fifths = (SIZE_GROUPS * (below + upto) / 2 / len(shares)).astype(int).clip(max=SIZE_GROUPS - 1)
    names = {}
    for number in set(fifths.tolist()):
        low, high = (f"{end(shares[fifths == number]):.1%}" for end in (np.min, np.max))
        names[number] = f"{number + 1}: {low}" if low == high else f"{number + 1}: {low} to {high}"
    fifth_of = dict(zip(share_of, fifths.tolist(), strict=True))
    return [names[fifth_of[prompt_id]] for prompt_id, _ in data.keys]


def calibration_curve(data: HeldOutAnnotations) -> list[CalibrationPoint]:
    """Returns mean reward and mean score of ten equal groups by reward."""
    return [
        CalibrationPoint(
            reward=float(data.reward[part].mean()),
            score=estimate_figure(data.scores[part], [data.photographs[row] for row in part]),
        )
        for part in np.array_split(np.argsort(data.reward, kind="stable"), CALIBRATION_GROUPS)
        if len(part)
    ]


def rank_by_trust(data: HeldOutAnnotations, conformal: float) -> TrustEnds:
    """Returns the most and the least certain candidates; `conformal` is the multiplier of their bounds."""
    rows_of: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row, key in enumerate(data.keys):
        rows_of[key].append(row)
    ordered = sorted(rows_of, key=lambda key: data.uncertainty[rows_of[key][0]])

    def describe(key: tuple[str, int]) -> RankedCandidate:
        """Returns the figures of one candidate, with its mean score."""
        first = rows_of[key][0]
        return RankedCandidate(
            prompt_id=key[0],
            sample_index=key[1],
            photograph=data.photographs[first],
            hole=data.holes[first],
            reward=float(data.reward[first]),
            uncertainty=float(data.uncertainty[first]),
            bound=float(conformal * data.uncertainty[first]),
            score=float(data.scores[rows_of[key]].mean()),
            annotations=len(rows_of[key]),
        )

    least = ordered[TRUSTED:][-TRUSTED:][::-1]
    return TrustEnds(most=[describe(key) for key in ordered[:TRUSTED]], least=[describe(key) for key in least])
