"""How often 95 % intervals hold the true figure, by simulation: `python -m benchmarks.interval_coverage`.

Photographs are drawn at random; the measurements of one are alike. Every method sees the same draws. A share is a
WinRate with beta-distributed rates of the photographs; a difference is a mark of one policy less that of another, with
tails and skewness that grow from row to row. A false pass is a policy no better than the one in place, whose interval
for the WinRate lies above 1/2, so that the gate lets it pass.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from rlhf.progress import progress_bar
from rlhf.reports.intervals import Estimate, estimate_figure, estimate_share

PHOTOGRAPHS = (6, 8, 10, 15, 25, 50)
RATES = (0.5, 0.6, 0.7, 0.85, 0.95)
KINSHIPS = ((1, 0.0, 0.0), (4, 0.1, 0.0), (4, 0.3, 0.0), (16, 0.1, 0.0), (16, 0.3, 0.0), (4, 0.1, 0.5))
"""Measurements per photograph, their correlation, and the share of ties."""
RESAMPLES = 600
BATCH = 100
"""Trials of a bootstrap that are resampled at once."""

Ends = tuple[np.ndarray, np.ndarray]
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
"""Draws values [trials, photographs, ...]."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Population from which photographs are drawn."""

    kind: str
    """`share` or `difference`."""
    name: str
    truth: float
    draw: Draw
    """Returns values [trials, photographs, measurements]."""


def list_settings() -> Iterator[Setting]:
    """Yields all populations: shares by rate and kinship, then differences by their distribution."""
    for rate, (count, correlation, tied) in itertools.product(RATES, KINSHIPS):
        yield Setting(
            kind="share",
            name=f"{rate:g}, {count} per photograph, correlation {correlation:g}, ties {tied:g}",
            truth=tied / 2 + (1 - tied) * rate,
            draw=partial(draw_wins, rate=rate, count=count, correlation=correlation, tied=tied),
        )
    draws: dict[str, Draw] = {
        "normal": lambda rng, shape: rng.normal(size=shape),
        "Student's t, 5 degrees of freedom": lambda rng, shape: rng.standard_t(5, shape),
        "skewness 1 (gamma)": lambda rng, shape: rng.gamma(4.0, 1.0, shape) - 4.0,
        "skewness 2 (exponential)": lambda rng, shape: rng.exponential(1.0, shape) - 1.0,
    }
    for name, draw in draws.items():
        yield Setting(kind="difference", name=name, truth=0.0, draw=partial(draw_single, draw))


def draw_single(draw: Draw, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draws one measurement per photograph: [trials, photographs, 1]."""
    return draw(rng, shape)[:, :, None]


def draw_wins(
    rng: np.random.Generator, shape: tuple[int, int], rate: float, count: int, correlation: float, tied: float
) -> np.ndarray:
    """Returns wins [*shape, count] of 0, 1/2 and 1; those of a photograph have the stated correlation."""
    rates = np.full(shape, rate)
    if correlation:
        mass = 1 / correlation - 1
        rates = rng.beta(rate * mass, (1 - rate) * mass, shape)
    won = rng.random((*shape, count)) < rates[..., None]
    return np.where(rng.random(won.shape) < tied, 0.5, won)


def resample(values: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Yields resamples [b, resamples, photographs] of the photographs' means, some trials at once."""
    means, rng = values.mean(axis=2), np.random.default_rng(seed)
    for start in range(0, len(means), BATCH):
        part = means[start : start + BATCH]
        places = rng.integers(0, part.shape[1], (len(part), RESAMPLES, part.shape[1]))
        yield np.take_along_axis(part[:, None, :], places, axis=2)


def percentile(values: np.ndarray) -> Ends:
    """Percentile bootstrap."""
    low, high = np.concatenate([np.percentile(r.mean(2), [2.5, 97.5], axis=1) for r in resample(values, 0)], axis=1)
    return low, high


def bootstrap_t(values: np.ndarray) -> Ends:
    """Bootstrap-t (Efron 1981); resamples without spread do not count."""
    means = values.mean(axis=2)
    value, sd = means.mean(1), means.std(1)
    quantiles = []
    for start, draws in zip(range(0, len(means), BATCH), resample(values, 0), strict=True):
        spread = np.where(draws.std(2) > 1e-9, draws.std(2), np.nan)
        studentised = (draws.mean(2) - value[start : start + BATCH, None]) / spread
        studentised[np.isnan(studentised).all(1)] = 0.0
        quantiles.append(np.nanpercentile(studentised, [97.5, 2.5], axis=1))
    low, high = value - sd * np.concatenate(quantiles, axis=1)
    return low, high


def bca(values: np.ndarray) -> Ends:
    """Bias-corrected and accelerated bootstrap (Efron 1987), as scipy has it."""
    from scipy.stats import bootstrap

    means = values.mean(axis=2)
    options = {"axis": 1, "n_resamples": RESAMPLES, "batch": 100, "method": "BCa", "rng": 0}
    with np.errstate(all="ignore"):
        found = bootstrap((means,), np.mean, **options).confidence_interval
    constant = means.std(1) < 1e-9  # scipy has NaN then.
    return np.where(constant, means[:, 0], found.low), np.where(constant, means[:, 0], found.high)


def student(values: np.ndarray) -> Ends:
    """Student's t on the photographs' means."""
    from scipy.special import stdtrit

    means = values.mean(axis=2)
    n = means.shape[1]
    half = stdtrit(n - 1, 0.975) * means.std(1, ddof=1) / np.sqrt(n)
    return means.mean(1) - half, means.mean(1) + half


def ours(values: np.ndarray, estimate: Callable[..., Estimate]) -> Ends:
    """`rlhf.reports.intervals`; without an interval there is no claim, so it holds everything."""
    names = [str(i) for i in range(values.shape[1]) for _ in range(values.shape[2])]
    found = np.array([(e.low, e.high) for e in (estimate(trial.ravel(), names) for trial in values)])
    return np.nan_to_num(found[:, 0], nan=-np.inf), np.nan_to_num(found[:, 1], nan=np.inf)


SHARES, FIGURES = "ours, `estimate_share`", "ours, `estimate_figure`"
METHODS: dict[str, Callable[[np.ndarray], Ends]] = {
    "percentile bootstrap": percentile,
    "BCa": bca,
    "bootstrap-t": bootstrap_t,
    "Student's t": student,
    SHARES: lambda values: ours(values, estimate_share),
    FIGURES: lambda values: ours(values, estimate_figure),
}
SPARED = {SHARES: ("difference",), FIGURES: ("share",)}
"""Kinds for which a method is not meant."""


def simulate(settings: list[Setting], photographs: int, trials: int, methods: dict, seed: int) -> pd.DataFrame:
    """Returns a row per setting and method: share of trials whose interval holds the truth, lies above and below it."""
    rows = []
    for number, setting in enumerate(settings):
        rng = np.random.default_rng((seed, photographs, number))
        values = setting.draw(rng, (trials, photographs))
        for name, method in methods.items():
            if setting.kind in SPARED.get(name, ()):
                continue
            low, high = method(values)
            # Ends that equal the truth up to rounding hold it.
            above, below = low > setting.truth + 1e-9, high < setting.truth - 1e-9
            ends = {"holds": (~above & ~below).mean(), "above": above.mean(), "width": np.median(high - low)}
            rows.append({"kind": setting.kind, "setting": setting.name, "method": name} | ends)
    return pd.DataFrame(rows).assign(photographs=photographs)


def main() -> None:
    """Prints the mean and the least coverage of every method, the false passes, and with --all every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    settings = list(list_settings())
    parts = progress_bar(PHOTOGRAPHS, stage="interval coverage")
    found = pd.concat([simulate(settings, n, arguments.trials, METHODS, seed=0) for n in parts])
    if arguments.all:
        print(found.round(3).to_csv(index=False))
    for kind, own in found.groupby("kind", sort=False):
        grouped = own.groupby(["method", "photographs"], sort=False)["holds"]
        table = (grouped.mean() * 100).map("{:.1f}".format) + " (" + (grouped.min() * 100).map("{:.1f}".format) + ")"
        print(f"{kind}: coverage in %, mean over settings (least)\n{table.unstack().to_string()}\n")
    even = found[found["setting"].str.startswith("0.5,")].groupby(["method", "photographs"], sort=False)["above"]
    print(f"false passes of the gate in %, at most\n{(even.max() * 100).round(1).unstack().to_string()}")


if __name__ == "__main__":
    main()
