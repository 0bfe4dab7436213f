"""Statistics of a few paired runs: Student's t interval and the smallest effect that the pairs could have shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POWER = 0.8
LEVEL = 0.05
"""Two-sided significance level."""


@dataclass(frozen=True, kw_only=True)
class PairedEstimate:
    """Mean of paired differences; what one pair cannot tell is None."""

    value: float | None
    low: float | None
    """Lower end of the 95 % interval by Student's t."""
    high: float | None
    p_value: float | None
    """Two-sided p of the hypothesis that the true mean is 0."""
    detectable: float | None
    """Smallest true mean that this number of pairs of this spread would have shown with 80 % power."""
    pairs: int


def estimate_paired(differences: Sequence[float] | np.ndarray, *, level: float = LEVEL) -> PairedEstimate:
    """Returns mean, interval and test of differences [n], one per pair; the interval covers 1 - `level`."""
    from scipy.stats import t

    values = np.asarray(differences, dtype=float)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return PairedEstimate(value=mean, low=None, high=None, p_value=None, detectable=None, pairs=n)
    sd = float(values.std(ddof=1))
    if sd == 0 and mean:  # Nothing tells how much other pairs would differ.
        return PairedEstimate(value=mean, low=None, high=None, p_value=None, detectable=None, pairs=n)
    error = sd / math.sqrt(n)
    half = float(t.ppf(1 - level / 2, n - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, n - 1)) if error > 0 else 1.0
    return PairedEstimate(
        value=mean, low=mean - half, high=mean + half, p_value=p, detectable=smallest_detectable(sd, n), pairs=n
    )


def smallest_detectable(sd: float, pairs: int) -> float:
    """Returns the true mean at which a two-sided 5 % t test of `pairs` pairs rejects with 80 % power.

    The power comes from the noncentral t distribution.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    freedom = pairs - 1
    critical = float(t.ppf(1 - LEVEL / 2, freedom))

    def excess(shift: float) -> float:
        # Rejections on the wrong side are ignored: at 80 % power they hardly occur.
        return float(nct.sf(critical, freedom, shift)) - POWER

    return float(brentq(excess, 0.0, critical * 10)) * sd / math.sqrt(pairs)
