"""Records of a comparison, as `comparison.json` holds them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.evaluation.alarms import Alarm, RangedEstimate
from rlhf.evaluation.comparison_measures import Measure
from rlhf.evaluation.judging import Judged
from rlhf.reports.intervals import Estimate
from rlhf.reports.significance import PairTest

SCHEMA_VERSION = 1
"""Schema version of `comparison.json`."""
BASE, ALIGNED = "base", "aligned"
"""Names of the models of a run."""
ALL = "all"
"""Name of all hole families together."""


@dataclass(frozen=True, kw_only=True)
class JudgedContestant:
    """Contestant whose samples were judged."""

    name: str
    spec: str
    follows_noise: bool
    """Whether sample n starts from the same noise as sample n of other contestants that follow noise."""
    judged: Judged

    def shares_noise_with(self, other: "JudgedContestant") -> bool:
        """Whether samples of the same number come from the same draw."""
        return self.name == other.name or (self.follows_noise and other.follows_noise)


@dataclass(frozen=True, kw_only=True)
class ContestantFigures:
    """Figures of one contestant."""

    spec: str
    samples_per_prompt: int
    follows_noise: bool
    known_pixels_differ: int
    """Number of pixels outside the holes that the contestant changed."""
    figures: dict[str, dict[str, Estimate | None]]
    """Estimates by hole family and measure; None if the contestant has no value."""
    monitors: dict[str, RangedEstimate]
    """Figures beside the base's, by key of ALARM_RANGES."""


@dataclass(frozen=True, kw_only=True)
class FamilySize:
    """Size of a hole family."""

    prompts: int
    photographs: int

    @classmethod
    def of(cls, places: Sequence[int], photographs: Sequence[str]) -> "FamilySize":
        """Returns the size of a family whose prompts lie at `places` of all; `photographs` are those of all prompts."""
        return cls(prompts=len(places), photographs=len({photographs[place] for place in places}))


@dataclass(frozen=True, kw_only=True)
class MissingMeasure:
    """Measure that could not be taken, and the reason."""

    measure: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """Settings that a reader of the results needs."""

    seed: int
    num_inference_steps: int
    reward: str
    prompts: str
    split: str


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """All figures of a comparison."""

    schema_version: int = SCHEMA_VERSION
    base: str
    """Name of the contestant that the others are compared with."""
    prompts: int
    """Number of prompts that all contestants filled."""
    photographs: int
    families: dict[str, FamilySize]
    contestants: dict[str, ContestantFigures]
    measures: dict[str, Measure]
    comparisons: list[PairTest]
    alarms: list[Alarm]
    notes: list[str]
    left_out: list[MissingMeasure]
    settings: ComparisonSettings | None = None
