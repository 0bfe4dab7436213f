"""What contestants are compared by, prompt by prompt; training reward, held-out judges and the original stay apart."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.evaluation.hole_measures import FIDELITY
from rlhf.evaluation.judging import JUDGE, LPIPS, LPIPS_SEAM, Judged
from rlhf.reports.intervals import best_of, wins

SIZES = (1, 3, 10)
"""S of WinRate(S), as in the paper."""
TRAINED, HELD_OUT, ORIGINAL, SAMPLES = "training reward", "held-out judges", "the original", "across samples"
GROUPS = (TRAINED, HELD_OUT, ORIGINAL, SAMPLES)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One column of the table."""

    label: str
    group: str
    """Of GROUPS."""
    spec: str
    """Format of its figures."""
    is_tested: bool = False
    """Whether contestants are compared pairwise by it."""
    more: str = ""
    """What it is, in a sentence."""


def list_measures(held_out: Sequence[str], *, has_lpips: bool = False) -> dict[str, Measure]:
    """By name, in the order of the table; `held_out` are the marks of judges that nothing was trained on."""
    measures: dict[str, Measure] = {}
    for judge in ("reward", *held_out):
        group = TRAINED if judge == "reward" else HELD_OUT
        of = {"reward": "", "gold": "gold "}.get(judge, f"{judge.removeprefix(JUDGE)} ")
        by = "the training reward" if judge == "reward" else f"{describe_judge(judge)}"
        for size in SIZES:
            more = f"Share of prompts on which the reward-best of {size} beats one sample of the base, by {by}."
            # Tested at S = 1 alone: more rates that tell the same would only make Holm's correction harsher.
            measures[win_rate(judge, size)] = Measure(
                label=f"{of}WinRate({size})", group=group, spec=".1%", is_tested=size == 1, more=more
            )
        more = f"The same for single samples of the same noise as the base's, by {by}."
        measures[f"{judge}_same_noise"] = Measure(label=f"{of}wins, same noise", group=group, spec=".1%", more=more)
        more = f"Mean mark by {by}."
        measures[judge] = Measure(label=f"{of}mean", group=group, spec=".4f", is_tested=True, more=more)
        if judge == "reward":
            more = "Mean of the reward's conformal lower bound."
            measures["lower"] = Measure(label="lower bound", group=group, spec=".3f", more=more)
            more = "Variance of the reward across a prompt's samples."
            measures["variance"] = Measure(label="Var", group=group, spec=".2e", more=more)
    lpips = (
        (LPIPS, "LPIPS", ".3f", "Of AlexNet, mean over the hole; 0 is the original."),
        (LPIPS_SEAM, "seam LPIPS", ".3f", "The same in a band across the hole's border."),
    )
    for name, label, spec, more in (
        *(lpips if has_lpips else ()),
        ("psnr_db", "PSNR, dB", ".2f", "Inside the hole, against the hidden original; favours blur."),
        ("ssim", "SSIM", ".3f", "Structural similarity inside the hole."),
        ("psnr_seam_db", "seam PSNR, dB", ".2f", "In a band across the hole's border, part of which is known."),
        ("ssim_seam", "seam SSIM", ".3f", "Structural similarity in that band."),
        ("seam", "seam", ".1f", "How far jumps across the hole's border are from the original's, of 255; 0 is best."),
    ):
        measures[name] = Measure(label=label, group=ORIGINAL, spec=spec, is_tested=True, more=more)
    more = "Mean difference of a prompt's samples inside the hole, levels of 255."
    measures["diversity"] = Measure(label="diversity", group=SAMPLES, spec=".1f", more=more)
    return measures


SET_MEASURES = {
    "fid": Measure(label="FID", group=ORIGINAL, spec=".2f", more="Of CLIP embeddings; biased for few images."),
    "kid": Measure(label="KID", group=ORIGINAL, spec=".2e", more="Of CLIP embeddings; unbiased."),
}
"""Of sets of images, by `feature_distances`."""


def describe_judge(judge: str) -> str:
    """A held-out judge, in words."""
    return "the gold judge (simulated)" if judge == "gold" else judge.removeprefix(JUDGE)


def win_rate(judge: str, size: int) -> str:
    """Name of WinRate(S) by a judge."""
    return f"{judge}_win_{size}"


def measure_prompts(judged: Judged, base: Judged, *, shares_noise: bool) -> dict[str, np.ndarray]:
    """By the names of `list_measures`, each [P]; measures that this contestant cannot have are absent.

    `shares_noise`: sample n of both begins with the same noise (or both are the same), so that pairs of equal number
    are no independent draws.
    """
    figures: dict[str, np.ndarray] = {}
    for judge in ("reward", *judged.held_out):
        marks = judged.marks[judge], base.marks[judge]
        for size in SIZES:
            rate = rate_wins(judged.reward, *marks, size=size, shares_noise=shares_noise)
            if rate is None and judged is base and size == 1:  # of one sample, which ties with itself
                rate = np.full(len(judged.reward), 0.5)
            if rate is not None:
                figures[win_rate(judge, size)] = rate
        if shares_noise and judged is not base:
            figures[f"{judge}_same_noise"] = wins(*marks).mean(1)
        figures[judge] = marks[0].mean(1)
    figures["lower"] = judged.marks["lower"].mean(1)
    if judged.images.shape[1] > 1:
        figures["variance"] = judged.reward.var(axis=1, ddof=1)
        figures["diversity"] = judged.diversity
    for name in [name for name in (*FIDELITY, LPIPS, LPIPS_SEAM) if name in judged.marks]:
        figures[name] = mean_of_known(judged.marks[name])
    return {name: values for name, values in figures.items() if np.isfinite(values).any()}


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Of rows [P, S], NaN left out; NaN where a row has nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=1)


def rate_wins(
    reward: np.ndarray, marks: np.ndarray, base: np.ndarray, *, size: int, shares_noise: bool
) -> np.ndarray | None:
    """[P]: how often the reward-best of `size` samples is marked higher than one of the base (ties count half).

    Averaged over every choice of `size` samples and every sample of the base, from reward and marks [P, N] and the
    base's marks [P, M]. A challenger's sample of the same noise as the base's is no independent draw, so with
    `shares_noise` that of the same number is left out: the base over itself is then S / (S + 1) by the reward.
    None where there are too few samples.
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
    """[P]: the mean of `won` [P, N] for the reward-best of `size` of N drawn at random."""
    order = np.argsort(-reward, axis=1, kind="stable")
    return np.take_along_axis(won, order, axis=1) @ best_of(reward.shape[1], size)


def shares_noise(name: str, base: str, follows: Mapping[str, bool]) -> bool:
    """Whether two contestants' samples of the same number come from the same draw."""
    return name == base or (follows[name] and follows[base])
