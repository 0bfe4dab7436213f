"""Measures by which contestants are compared, prompt by prompt.

The training reward, the held-out judges and the original form groups that are shown apart.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.evaluation.hole_measures import FIDELITY
from rlhf.evaluation.judging import JUDGE, LPIPS, LPIPS_SEAM, NETWORK_DISTANCE, Judged, describe_judge
from rlhf.evaluation.network_judge import NAME
from rlhf.reports.intervals import best_of, wins

SIZES = (1, 3, 10)
"""Values of S in WinRate(S), as in the paper."""
TRAINED, HELD_OUT, ORIGINAL, SAMPLES = "training reward", "held-out judges", "the original", "across samples"
GROUPS = (TRAINED, HELD_OUT, ORIGINAL, SAMPLES)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Column of the table of contestants."""

    label: str
    group: str
    """One of GROUPS."""
    spec: str
    """Format specification of its figures."""
    is_tested: bool = False
    """Whether pairs of contestants are tested by it."""
    is_share: bool = False
    """Whether its figures are shares, from 0 to 1."""
    more: str = ""
    """Explanation in one sentence."""


def list_measures(held_out: Sequence[str], marks: Collection[str] = ()) -> dict[str, Measure]:
    """Returns the measures by name, in the order of the table.

    `held_out` names the marks of held-out judges, and `marks` tells which distances of networks there are.
    """
    measures: dict[str, Measure] = {}
    for judge in ("reward", *held_out):
        group = TRAINED if judge == "reward" else HELD_OUT
        of = {"reward": "", "gold": "gold ", JUDGE + NAME: "network "}.get(judge, f"{judge.removeprefix(JUDGE)} ")
        by = "the training reward" if judge == "reward" else describe_judge(judge)
        for size in SIZES:
            more = f"Share of prompts on which the reward-best of {size} beats one sample of the base, by {by}."
            # Only S = 1 is tested: correlated tests would only make Holm's correction harsher.
            measures[win_rate(judge, size)] = Measure(
                label=f"{of}WinRate({size})", group=group, spec=".1%", is_tested=size == 1, is_share=True, more=more
            )
        more = f"Share of single samples that beat the base's sample of the same noise, by {by}."
        label = f"{of}wins, same noise"
        measures[f"{judge}_same_noise"] = Measure(label=label, group=group, spec=".1%", is_share=True, more=more)
        more = f"Mean mark by {by}."
        measures[judge] = Measure(label=f"{of}mean", group=group, spec=".4f", is_tested=True, more=more)
        if judge == "reward":
            more = "Mean of the reward's conformal lower bound."
            measures["lower"] = Measure(label="lower bound", group=group, spec=".3f", more=more)
            more = "Variance of the reward across a prompt's samples."
            measures["variance"] = Measure(label="Var", group=group, spec=".2e", more=more)
    measures |= _against_the_original(marks)
    more = "Mean difference of a prompt's samples inside the hole, levels of 255."
    measures["diversity"] = Measure(label="diversity", group=SAMPLES, spec=".1f", more=more)
    return measures


def _against_the_original(marks: Collection[str]) -> dict[str, Measure]:
    """Returns the measures of the distance from the original; those of networks only if they are among the marks."""
    measures = {}
    distances = (
        (
            NETWORK_DISTANCE,
            "network distance",
            ".3f",
            "Distance in the held-out network's features; 0 is the original.",
        ),
        (LPIPS, "LPIPS", ".3f", "LPIPS of AlexNet, mean over the hole; 0 is the original."),
        (LPIPS_SEAM, "seam LPIPS", ".3f", "LPIPS in a band across the hole's border."),
    )
    for name, label, spec, more in (
        *(own for own in distances if own[0] in marks),
        ("psnr_db", "PSNR, dB", ".2f", "PSNR inside the hole, against the hidden original; favours blur."),
        ("ssim", "SSIM", ".3f", "Structural similarity inside the hole."),
        ("psnr_seam_db", "seam PSNR, dB", ".2f", "PSNR in a band across the hole's border; part of the band is known."),
        ("ssim_seam", "seam SSIM", ".3f", "Structural similarity in that band."),
        ("likeness", "likeness", ".3f", "Likeness to the original, 1 at most; forgives blur."),
        ("seam", "seam", ".1f", "Difference of jumps across the border from the original's, of 255; 0 is best."),
    ):
        measures[name] = Measure(label=label, group=ORIGINAL, spec=spec, is_tested=True, more=more)
    return measures


SET_MEASURES = {
    "fid": Measure(
        label="FID",
        group=ORIGINAL,
        spec=".2f",
        more="FID in features of the held-out network or of a CLIP model; biased for few images.",
    ),
    "kid": Measure(label="KID", group=ORIGINAL, spec=".2e", more="KID in these features; unbiased."),
}
"""Measures of sets of images, from `feature_distances`."""


def win_rate(judge: str, size: int) -> str:
    """Returns the name of WinRate(S) by a judge."""
    return f"{judge}_win_{size}"


def measure_prompts(judged: Judged, base: Judged, *, shares_noise: bool) -> dict[str, np.ndarray]:
    """Returns the measures [P] by the names of `list_measures`, without those that this contestant cannot have.

    `shares_noise` is True if sample n of both starts from the same noise, or if both are the same contestant. Samples
    of equal number are then not independent.
    """
    figures: dict[str, np.ndarray] = {}
    for judge in ("reward", *judged.held_out):
        marks = judged.marks[judge], base.marks[judge]
        for size in SIZES:
            rate = rate_wins(judged.reward, *marks, size=size, shares_noise=shares_noise)
            if rate is None and judged is base and size == 1:  # One sample, which ties with itself.
                rate = np.full(len(judged.reward), 0.5)
            if rate is not None:
                figures[win_rate(judge, size)] = rate
        if shares_noise and judged is not base:
            figures[f"{judge}_same_noise"] = wins(*marks).mean(1)
        figures[judge] = marks[0].mean(1)
    figures["lower"] = judged.marks["lower"].mean(1)
    if judged.samples > 1:
        figures["variance"] = judged.reward.var(axis=1, ddof=1)
        figures["diversity"] = judged.diversity
    for name in [name for name in (*FIDELITY, NETWORK_DISTANCE, LPIPS, LPIPS_SEAM) if name in judged.marks]:
        figures[name] = mean_of_known(judged.marks[name])
    return {name: values for name, values in figures.items() if np.isfinite(values).any()}


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Returns the means of rows [P, S] without their NaN; NaN if a row has nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=1)


def rate_wins(
    reward: np.ndarray, marks: np.ndarray, base: np.ndarray, *, size: int, shares_noise: bool
) -> np.ndarray | None:
    """Returns the rate [P] at which the reward-best of `size` samples is marked higher than a sample of the base.

    Ties count half. The rate is the mean over every choice of `size` samples and every sample of the base; reward and
    marks are [P, N], the base's marks [P, M]. With `shares_noise` the challenger's sample of the same number as the
    base's is left out, since the two are not independent; the base over itself then has S / (S + 1) by the reward.
    Returns None if there are too few samples.
    """
    count = reward.shape[1]
    if not shares_noise:
        return None if size > count else _expect(reward, wins(marks[:, :, None], base[:, None]).mean(2), size)
    if size > count - 1:
        return None
    rates = []
    for place in range(base.shape[1]):
        others = [i for i in range(count) if i != place]
        rates.append(_expect(reward[:, others], wins(marks[:, others], base[:, [place]]), size))
    return np.mean(rates, axis=0)


def _expect(reward: np.ndarray, won: np.ndarray, size: int) -> np.ndarray:
    """Returns the mean [P] of `won` [P, N] for the reward-best of `size` of the N samples, drawn at random."""
    order = np.argsort(-reward, axis=1, kind="stable")
    return np.take_along_axis(won, order, axis=1) @ best_of(reward.shape[1], size)
