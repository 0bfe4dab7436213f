"""How near a painted band is to the true rest of the photograph, and how it meets what lies beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlhf.data.gold_judge import gold_utility, sharpness
from rlhf.evaluation.hole_measures import SSIM_WINDOW_PX
from rlhf.reports.intervals import cluster_bootstrap
from rlhf.storage.images import image_to_tensor, mask_to_tensor
from rlhf.views.growth import Band, band_hole

CONTEXT_PX = 24
"""What of a band's neighbourhood the measures see; the widest blur of the gold judge reaches as far."""
Row = Mapping[str, Any]
"""`photograph`, `contestant`, `step`, `side`, and the figures of `measure_band`; None where one cannot be computed."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure over photographs: the mean of a column, or the ratio of the means of two."""

    label: str
    """What it is, with unit and which way is better."""
    column: str
    over: str | None = None
    """Column in the denominator."""


MEASURES = {
    "psnr_db": Measure(label="PSNR, dB: higher is nearer", column="psnr_db"),
    "ssim": Measure(label="SSIM: 1 is the photograph", column="ssim"),
    "colour_drift": Measure(label="distance of mean colours, Lab: 0 is the photograph", column="colour_drift"),
    "sharpness_ratio": Measure(label="sharpness: 1 is the photograph's", column="sharpness", over="sharpness_true"),
    "seam": Measure(label="extra jump at the border, levels of 255: 0 is the photograph", column="seam"),
    "jump_ratio": Measure(label="jump at the border: 1 is the photograph's", column="jump", over="jump_true"),
    "gold": Measure(label="utility by the gold judge: 1 is the photograph", column="gold"),
}
COLUMNS = tuple(dict.fromkeys(c for m in MEASURES.values() for c in (m.column, m.over) if c is not None))


def measure_band(extended: np.ndarray, truth: np.ndarray, band: Band) -> dict[str, float | None]:
    """The figures of one band, by COLUMNS; pictures uint8 [H, W, 3], all margins included.

    What lies inwards of the band is taken as it is in `extended`: painted, from the second step on. `psnr_db` is None
    where band and truth are equal, `ssim` where they are smaller than its window.
    """
    image, original, hole = _cut(extended, truth, band)
    error = float(((image.astype(float) - original) ** 2)[hole].mean())
    jump, jump_true = (_jumps(pixels.astype(float), hole) for pixels in (image, original))
    images, originals = (image_to_tensor(pixels)[None] for pixels in (image, original))
    masks = mask_to_tensor(hole)[None]
    return {
        "psnr_db": None if error == 0 else float(10 * np.log10(255**2 / error)),
        "ssim": _ssim(image, original, hole),
        "colour_drift": _colour_distance(image[hole], original[hole]),
        "sharpness": float(sharpness(images, masks)),
        "sharpness_true": float(sharpness(originals, masks)),
        "seam": float(np.abs(jump - jump_true).mean()),
        "jump": float(np.abs(jump).mean()),
        "jump_true": float(np.abs(jump_true).mean()),
        "gold": float(gold_utility(images, originals, masks).overall),
    }


def _cut(extended: np.ndarray, truth: np.ndarray, band: Band) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Band and context in both pictures, and which of it the band is."""
    left, top, right, bottom = band.extent
    x = max(left, band.box[0] - CONTEXT_PX), min(right, band.box[2] + CONTEXT_PX)
    y = max(top, band.box[1] - CONTEXT_PX), min(bottom, band.box[3] + CONTEXT_PX)
    hole = band_hole(band)[y[0] - top : y[1] - top, x[0] - left : x[1] - left]
    return extended[slice(*y), slice(*x)], truth[slice(*y), slice(*x)], hole


def _jumps(pixels: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Differences [n, 3] of neighbouring pixels of which one is in the hole."""
    return np.concatenate([np.diff(pixels, axis=axis)[np.diff(hole, axis=axis)] for axis in (0, 1)])


def _ssim(image: np.ndarray, original: np.ndarray, hole: np.ndarray) -> float | None:
    from skimage.metrics import structural_similarity

    if min(hole.shape) < SSIM_WINDOW_PX:
        return None
    options = {"win_size": SSIM_WINDOW_PX, "channel_axis": 2, "data_range": 255, "full": True}
    _, similarity = structural_similarity(image, original, **options)
    return float(similarity[hole].mean())


def _colour_distance(pixels: np.ndarray, true: np.ndarray) -> float:
    """Distance of mean colours in CIE Lab, of uint8 [n, 3]."""
    from skimage.color import rgb2lab

    means = [rgb2lab(part[None]).mean(axis=(0, 1)) for part in (pixels, true)]
    return float(np.linalg.norm(means[0] - means[1]))


def summarise_rows(rows: Sequence[Row], *, resamples: int) -> dict[str, Any]:
    """By measure and contestant: each step, all steps, and `drift`, the last step less the first; then differences.

    Each is an estimate with its 95 % interval by bootstrap over photographs, or None where no photograph has it;
    `left_out` counts the bands that had to be left out. Differences are contestant less the first contestant,
    band by band; where either lacks a figure, the band is left out of both.
    """
    contestants = list(dict.fromkeys(row["contestant"] for row in rows))
    steps = sorted({row["step"] for row in rows})
    of = {name: [row for row in rows if row["contestant"] == name] for name in contestants}
    summary: dict[str, Any] = {"measures": {}, "differences": {}}
    for name, measure in MEASURES.items():

        def estimate(*sets: Sequence[Row], measure: Measure = measure) -> dict[str, Any] | None:
            return estimate_difference(measure, *sets, resamples=resamples)

        parts = {c: {s: [r for r in of[c] if r["step"] == s] for s in steps} for c in contestants}
        summary["measures"][name] = {
            c: {
                "steps": [estimate(parts[c][s]) for s in steps],
                "all": estimate(of[c]),
                "drift": estimate(parts[c][steps[-1]], parts[c][steps[0]]),
                "left_out": sum(not _has(row, measure) for row in of[c]),
            }
            for c in contestants
        }
        first, *others = contestants
        summary["differences"][name] = {
            c: {"steps": [estimate(parts[c][s], parts[first][s]) for s in steps], "all": estimate(of[c], of[first])}
            for c in others
        }
    return summary


def _has(row: Row, measure: Measure) -> bool:
    return row[measure.column] is not None and (measure.over is None or row[measure.over] is not None)


def estimate_difference(measure: Measure, *sets: Sequence[Row], resamples: int) -> dict[str, Any] | None:
    """A measure of one set of rows, or of the first less the second, paired by photograph, side and place in order.

    None where no rows, or no pairs, have it, or where a denominator is 0.
    """
    keyed = [_by_key(rows, measure) for rows in sets]
    keys = [key for key in keyed[0] if all(key in other for other in keyed)]
    values = np.array([[number for rows in keyed for number in rows[key]] for key in keys])
    statistic = _statistic(len(sets))
    if not keys or not np.isfinite(statistic(values)):
        return None
    photographs = [key[0] for key in keys]
    return asdict(cluster_bootstrap(values, photographs, resamples=resamples, statistic=statistic))


def _by_key(rows: Sequence[Row], measure: Measure) -> dict[tuple[str, str, int], tuple[float, float]]:
    """Numerator and denominator by photograph, side and number of the step among those of the rows."""
    places = {step: place for place, step in enumerate(sorted({row["step"] for row in rows}))}
    return {
        (row["photograph"], row["side"], places[row["step"]]): (
            row[measure.column],
            1.0 if measure.over is None else row[measure.over],
        )
        for row in rows
        if _has(row, measure)
    }


def _statistic(sets: int) -> Callable[[np.ndarray], float]:
    """Ratio of means of columns 0 and 1, less that of columns 2 and 3 where there are two sets."""

    def compute(values: np.ndarray) -> float:
        means = values.mean(axis=0)
        ratios = [means[2 * i] / means[2 * i + 1] if means[2 * i + 1] else np.nan for i in range(sets)]
        return float(ratios[0] - ratios[1] if sets > 1 else ratios[0])

    return compute
