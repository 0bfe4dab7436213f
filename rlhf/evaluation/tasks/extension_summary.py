"""Summary of judged extensions, as `extension_study.json` holds it beside the settings."""

from dataclasses import dataclass

from rlhf.evaluation.evaluation import GOLD_JUDGE
from rlhf.evaluation.tasks.extension_measures import StepSummary

SCHEMA_VERSION = 1
"""Schema version of `extension_study.json`."""


@dataclass(frozen=True, kw_only=True)
class ExtensionSummary(StepSummary):
    """Figures of all contestants."""

    schema_version: int = SCHEMA_VERSION
    growth: float
    """True width over the strip's."""
    steps_per_side: int
    height_px: int | None
    photographs: int
    skipped: int
    """Number of photographs that cannot be judged."""
    known_pixels_differ: int
    judge: str = GOLD_JUDGE
    reference: str
    """Contestant with which the others are compared."""
