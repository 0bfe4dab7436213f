"""Records of the study of new views, as `views_study.json` holds them."""

from dataclasses import dataclass

from pydantic import JsonValue

from rlhf.reports.intervals import Estimate
from rlhf.reports.records import Number

RegionSums = dict[str, dict[str, list[list[float]]]]
"""Rows of `judge_against_truth` of one seed, by filler and part."""


@dataclass(frozen=True, kw_only=True)
class RegionEstimate:
    """Figure with an interval over regions of one picture."""

    value: Number
    low: Number
    high: Number
    regions: int


@dataclass(frozen=True, kw_only=True)
class FillFigures(RegionEstimate):
    """PSNR in dB, or its gain, with the structural similarity."""

    ssim: RegionEstimate


@dataclass(frozen=True, kw_only=True)
class PartFigures:
    """Figures of one part of the stereo pair."""

    pixels: int
    fillers: dict[str, FillFigures]
    aligned_over_base: FillFigures


@dataclass(frozen=True, kw_only=True)
class CloudFigures:
    """Figures of one synthetic scene and filler; `scenes` defines them. None if nothing can be measured."""

    points: int
    completeness: float
    accuracy: float
    precision: float
    added_accuracy: float | None
    added_precision: float | None
    reached: float
    """Share of the held-out cameras' pixels that the cloud reaches."""
    psnr: float | None
    """PSNR of all pixels, in dB."""
    psnr_unseen: float | None
    unseen_pixels: int


@dataclass(frozen=True, kw_only=True)
class ScenesSummary:
    """Means over scenes."""

    count: int
    means: dict[str, dict[str, Estimate | None]]
    """Means by filler and figure."""
    differences: dict[str, dict[str, Estimate | None]]
    """Paired differences of two fillers by figure."""


@dataclass(frozen=True, kw_only=True)
class ViewsSummary:
    """Summary of the study."""

    settings: dict[str, JsonValue]
    seeds: int
    motorcycle: dict[str, dict[str, PartFigures]]
    """Figures by the divisor of the picture's sides and by part."""
    scenes: ScenesSummary
    notes: list[str]
