"""Measures of an extended band: its distance from the photograph's true rest, and its joint with the known part."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rlhf.data.likeness import likeness, sharpness
from rlhf.evaluation.hole_measures import SSIM_WINDOW_PX
from rlhf.reports.intervals import Estimate, estimate_figure
from rlhf.storage.images import image_to_tensor, mask_to_tensor
from rlhf.views.growth import Band, band_hole

CONTEXT_PX = 24
"""Width of the neighbourhood of a band that the measures see; the widest blur of `likeness` reaches as far."""


@dataclass(frozen=True, kw_only=True)
class BandFigures:
    """Figures of one band; None if one cannot be computed."""

    psnr_db: float | None
    """PSNR inside the band; None if the band equals the photograph."""
    ssim: float | None
    """Structural similarity; None if the band is smaller than its window."""
    colour_drift: float
    """Distance of mean colours in CIE Lab."""
    sharpness: float
    sharpness_true: float
    seam: float
    """Mean difference between the jumps at the border of extension and photograph, in levels of 255."""
    jump: float
    """Mean jump at the border, in levels of 255."""
    jump_true: float
    likeness: float
    """Likeness to the original."""


@dataclass(frozen=True, kw_only=True)
class StepMeasure:
    """Measure over photographs: the mean of a column, or the ratio of the means of two."""

    label: str
    """Name, with unit and the direction that is better."""
    column: str
    """Field of BandFigures."""
    over: str | None = None
    """Field in the denominator."""


STEP_MEASURES = {
    "psnr_db": StepMeasure(label="PSNR, dB: higher is nearer", column="psnr_db"),
    "ssim": StepMeasure(label="SSIM: 1 is the photograph", column="ssim"),
    "colour_drift": StepMeasure(label="distance of mean colours, Lab: 0 is the photograph", column="colour_drift"),
    "sharpness_ratio": StepMeasure(label="sharpness: 1 is the photograph's", column="sharpness", over="sharpness_true"),
    "seam": StepMeasure(label="extra jump at the border, levels of 255: 0 is the photograph", column="seam"),
    "jump_ratio": StepMeasure(label="jump at the border: 1 is the photograph's", column="jump", over="jump_true"),
    "likeness": StepMeasure(label="likeness to the original: 1 is the photograph", column="likeness"),
}


@dataclass(frozen=True, kw_only=True)
class StepEstimates:
    """Estimates of one measure over photographs; None if no photograph has it."""

    steps: list[Estimate | None]
    """One estimate per step."""
    all: Estimate | None
    """Estimate over all steps."""


@dataclass(frozen=True, kw_only=True)
class ContestantSteps(StepEstimates):
    """Estimates of one measure for one contestant."""

    drift: Estimate | None
    """Last step minus first."""
    left_out: int
    """Number of bands for which the measure cannot be computed."""


@dataclass(frozen=True, kw_only=True)
class StepSummary:
    """Estimates by measure and contestant."""

    measures: dict[str, dict[str, ContestantSteps]]
    differences: dict[str, dict[str, StepEstimates]]
    """Differences from the first contestant, paired band by band."""


def measure_band(extended: np.ndarray, truth: np.ndarray, band: Band) -> BandFigures:
    """Returns the figures of one band; pictures uint8 [H, W, 3], all margins included.

    The neighbourhood inwards of the band is taken from `extended`; from the second step on it is painted too.
    """
    image, original, hole = _cut(extended, truth, band)
    error = float(((image.astype(float) - original) ** 2)[hole].mean())
    jump, jump_true = (_jumps(pixels.astype(float), hole) for pixels in (image, original))
    images, originals = (image_to_tensor(pixels)[None] for pixels in (image, original))
    masks = mask_to_tensor(hole)[None]
    return BandFigures(
        psnr_db=None if error == 0 else float(10 * np.log10(255**2 / error)),
        ssim=_ssim(image, original, hole),
        colour_drift=_colour_distance(image[hole], original[hole]),
        sharpness=float(sharpness(images, masks)),
        sharpness_true=float(sharpness(originals, masks)),
        seam=float(np.abs(jump - jump_true).mean()),
        jump=float(np.abs(jump).mean()),
        jump_true=float(np.abs(jump_true).mean()),
        likeness=float(likeness(images, originals, masks).overall),
    )


def _cut(extended: np.ndarray, truth: np.ndarray, band: Band) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts the band and its neighbourhood out of both pictures; the mask [H, W] marks the band."""
    left, top, right, bottom = band.extent
    x = max(left, band.box[0] - CONTEXT_PX), min(right, band.box[2] + CONTEXT_PX)
    y = max(top, band.box[1] - CONTEXT_PX), min(bottom, band.box[3] + CONTEXT_PX)
    hole = band_hole(band)[y[0] - top : y[1] - top, x[0] - left : x[1] - left]
    return extended[slice(*y), slice(*x)], truth[slice(*y), slice(*x)], hole


def _jumps(pixels: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Returns differences [n, 3] of neighbouring pixels on either side of the hole's border."""
    return np.concatenate([np.diff(pixels, axis=axis)[np.diff(hole, axis=axis)] for axis in (0, 1)])


def _ssim(image: np.ndarray, original: np.ndarray, hole: np.ndarray) -> float | None:
    from skimage.metrics import structural_similarity

    if min(hole.shape) < SSIM_WINDOW_PX:
        return None
    options = {"win_size": SSIM_WINDOW_PX, "channel_axis": 2, "data_range": 255, "full": True}
    _, similarity = structural_similarity(image, original, **options)
    return float(similarity[hole].mean())


def _colour_distance(pixels: np.ndarray, true: np.ndarray) -> float:
    """Returns the distance of mean colours in CIE Lab; colours uint8 [n, 3]."""
    from skimage.color import rgb2lab

    means = [rgb2lab(part[None]).mean(axis=(0, 1)) for part in (pixels, true)]
    return float(np.linalg.norm(means[0] - means[1]))


def summarise_rows(rows: pd.DataFrame) -> StepSummary:
    """Returns the estimates of all measures, with 95 % intervals over photographs.

    `rows` has one row per band, with columns `photograph`, `contestant`, `step`, `side` and the fields of BandFigures.
    A band without a figure in one contestant is left out of the difference of both.
    """
    summary = StepSummary(measures={}, differences={})
    contestants = {name: rows[rows["contestant"] == name] for name in rows["contestant"].unique()}
    reference, *others = contestants
    steps = sorted(rows["step"].unique())
    for name, measure in STEP_MEASURES.items():

        def estimate(*sets: pd.DataFrame, measure: StepMeasure = measure) -> Estimate | None:
            """Returns `estimate_difference` of these sets."""
            return estimate_difference(measure, *sets)

        parts = {c: [own[own["step"] == step] for step in steps] for c, own in contestants.items()}
        summary.measures[name] = {
            c: ContestantSteps(
                steps=[estimate(part) for part in parts[c]],
                all=estimate(own),
                drift=estimate(parts[c][-1], parts[c][0]),
                left_out=len(own) - len(_values(own, measure)),
            )
            for c, own in contestants.items()
        }
        summary.differences[name] = {
            c: StepEstimates(
                steps=[estimate(*pair) for pair in zip(parts[c], parts[reference], strict=True)],
                all=estimate(contestants[c], contestants[reference]),
            )
            for c in others
        }
    return summary


def estimate_difference(measure: StepMeasure, *sets: pd.DataFrame) -> Estimate | None:
    """Returns a measure of one set of rows, or of the first minus the second, paired by photograph, side and step.

    Returns None if no rows, or no pairs, have it, or if a denominator is 0.
    """
    paired = pd.concat([_values(rows, measure) for rows in sets], axis=1, join="inner")
    values, statistic = np.ascontiguousarray(paired.to_numpy()), _statistic(len(sets))
    if not len(values) or not np.isfinite(statistic(values)):
        return None
    photographs = list(paired.index.get_level_values("photograph"))
    return estimate_figure(values, photographs, statistic=statistic)


def _values(rows: pd.DataFrame, measure: StepMeasure) -> pd.DataFrame:
    """Returns numerator and denominator of rows that have both, by photograph, side and rank of the step."""
    keys = [rows["photograph"], rows["side"], rows["step"].rank(method="dense")]
    over = 1.0 if measure.over is None else rows[measure.over]
    return pd.DataFrame({"value": rows[measure.column], "over": over}).astype(float).set_index(keys).dropna()


def _statistic(sets: int) -> Callable[[np.ndarray], float]:
    """Returns the ratio of the means of columns 0 and 1, minus that of columns 2 and 3 if there are two sets."""

    def compute(values: np.ndarray) -> float:
        """Returns the ratio, or the difference of both."""
        means = values.mean(axis=0)
        ratios = [means[2 * i] / means[2 * i + 1] if means[2 * i + 1] else np.nan for i in range(sets)]
        return float(ratios[0] - ratios[1] if sets > 1 else ratios[0])

    return compute
