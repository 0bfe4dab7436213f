"""What a few paired runs can tell: t intervals, the smallest effect they could have shown, Holm's correction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POWER = 0.8
LEVEL = 0.05
"""Two-sided."""


@dataclass(frozen=True, kw_only=True)
class PairedEstimate:
    """Mean of paired differences; what one pair cannot tell is None."""

    value: float
    low: float | None
    """95 % interval by Student's t."""
    high: float | None
    p_value: float | None
    """Two-sided, that the true mean is 0."""
    detectable: float | None
    """Smallest true mean that so many pairs of this spread would have shown with 80 % power."""
    pairs: int


def estimate_paired(differences: Sequence[float] | np.ndarray, *, level: float = LEVEL) -> PairedEstimate:
    """Mean, interval and test of differences [n], one per pair; `level` is the interval's."""
    from scipy.stats import t

    values = np.asarray(differences, dtype=float)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return PairedEstimate(value=mean, low=None, high=None, p_value=None, detectable=None, pairs=n)
    sd = float(values.std(ddof=1))
    error = sd / math.sqrt(n)
    half = float(t.ppf(1 - level / 2, n - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
    return PairedEstimate(
        value=mean, low=mean - half, high=mean + half, p_value=p, detectable=smallest_detectable(sd, n), pairs=n
    )


def smallest_detectable(sd: float, pairs: int) -> float:
    """The true mean at which a two-sided 5 % t test of so many pairs rejects with 80 % power; by the noncentral t."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    freedom = pairs - 1
    critical = float(t.ppf(1 - LEVEL / 2, freedom))

    def excess(shift: float) -> float:
        # Rejections on the wrong side are left out: at 80 % power they are next to none.
        return float(nct.sf(critical, freedom, shift)) - POWER

    return float(brentq(excess, 0.0, critical * 10)) * sd / math.sqrt(pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm, 1979), in their order."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted
