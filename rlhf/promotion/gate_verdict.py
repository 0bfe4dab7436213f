"""Verdict of the gate, a file beside the catalogue: the comparison, its figures, and the limits."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from rlhf.config.gate_config import GateConfig
from rlhf.errors import UserError
from rlhf.evaluation.evaluation import Gain
from rlhf.promotion.catalogue import ServedPolicy
from rlhf.reports.intervals import Estimate
from rlhf.storage.atomic_files import atomic_write_json, check_schema, read_json

SCHEMA_VERSION = 1
JUDGE = "gold judge, simulated: the noiseless utility of the simulated annotators; no policy was trained on it"


class Record(BaseModel):
    """Base class of the records of a verdict."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Comparison(Record):
    """Everything that determines the figures: equal comparisons give equal figures."""

    base: str
    """Base model of both policies."""
    contender: str
    """Checksum of the contender's weights."""
    incumbent: str | None
    """Checksum of the incumbent's weights; None is the base model itself."""
    prompts: str
    """Checksum of the held-out prompts: ids, photographs, pictures, masks."""
    split: str
    """Split of the prompts."""
    reward: str
    """Checksum of the reward folder's files; the reward's figure is shown, but decides nothing."""
    seed: int
    """Seed of the noise, the same for both policies."""
    settings: dict[str, JsonValue]
    """The section `evaluate`, and the fields of `model` that change images, for comparison with another verdict's."""
    software: str
    """Version of prefpaint-ray."""


class Check(Record):
    """A figure and its limit."""

    figure: str
    """Name of the figure."""
    value: float | None
    """Measured value; None if it is not a number."""
    low: float | None = None
    """Lower end of the 95 % interval; it decides."""
    high: float | None = None
    """Upper end of the 95 % interval."""
    limit: float | None
    """Number that `low` must exceed, or that a count must not exceed; None if the figure is only shown."""
    passed: bool
    """Whether the figure keeps to the limit."""


class Verdict(Record):
    """Whether a policy may answer under a name."""

    schema_version: int = SCHEMA_VERSION
    name: str
    """Name under which the policy is to answer."""
    contender: ServedPolicy
    """The policy, at its folder when it was judged."""
    incumbent: ServedPolicy
    """The policy that answered when the contender was judged."""
    comparison: Comparison
    """Checksums and settings of the comparison."""
    judge: str = JUDGE
    """Judge whose marks the WinRate counts."""
    prompts: int
    """Number of prompts, each with `settings.samples_per_prompt` samples of either policy."""
    photographs: int
    """Number of photographs that the prompts show."""
    judged: str
    """Time of the painting, ISO 8601."""
    figures: Gain
    """Contender over incumbent, with 95 % intervals over photographs."""
    decided: str
    """Time at which the limits were applied, ISO 8601."""
    limits: GateConfig
    """Limits in force at that time."""
    checks: tuple[Check, ...]
    """The figures against their limits."""
    passed: bool
    """Whether all checks passed."""
    forced: bool
    """Whether the user asked for promotion regardless of the checks."""

    def decide(self, limits: GateConfig, *, forced: bool) -> "Verdict":
        """Returns the same figures under these limits."""
        checks = tuple(check_figures(self.figures, limits))
        passed = all(check.passed for check in checks)
        found = {"limits": limits, "checks": checks, "passed": passed, "forced": forced, "decided": timestamp()}
        return self.model_copy(update=found)


def timestamp() -> str:
    """Returns the current time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_figures(figures: Gain, limits: GateConfig) -> Iterator[Check]:
    """Yields the deciding figures, and the WinRates by the held-out network and by the reward, which decide nothing."""
    yield _check_estimate("win_rate", figures.win_rate, limits.min_win_rate)
    if figures.win_rate_network is not None:
        yield _check_estimate("win_rate_network", figures.win_rate_network, None)
    yield _check_estimate("win_rate_reward", figures.win_rate_reward, None)
    yield _check_estimate("sharpness_ratio", figures.sharpness_ratio, limits.min_sharpness_ratio)
    yield _check_estimate("diversity_ratio", figures.diversity_ratio, limits.min_diversity_ratio)
    differing = figures.known_pixels_differ
    yield Check(figure="known_pixels_differ", value=differing, limit=0, passed=differing == 0)


def _check_estimate(name: str, estimate: Estimate, limit: float | None) -> Check:
    """Compares the lower end with the limit; an end that is no number passes no limit."""
    value, low, high = (end if math.isfinite(end) else None for end in (estimate.value, estimate.low, estimate.high))
    passed = limit is None or (low is not None and low > limit)
    return Check(figure=name, value=value, low=low, high=high, limit=limit, passed=passed)


def verdict_file(catalogue: Path, name: str, contender: ServedPolicy, incumbent: ServedPolicy) -> Path:
    """Returns the file of a verdict: `names.verdicts/NAME-VERSION-over-VERSION.json` beside `names.json`."""
    folder = catalogue.parent / f"{catalogue.stem}.verdicts"
    return folder / f"{name}-{contender.version}-over-{incumbent.version}.json"


def write_verdict(verdict: Verdict, path: Path) -> None:
    """Writes a verdict, whole or not at all."""
    atomic_write_json(path, verdict.model_dump(mode="json"))


def read_verdict(path: Path) -> Verdict:
    """Reads a verdict. Raises UserError if the file is damaged or of a newer schema."""
    remedy = "remove it, and the policies are judged anew"
    record = read_json(path, remedy)
    check_schema(record.get("schema_version") if isinstance(record, dict) else None, SCHEMA_VERSION, path)
    try:
        return Verdict.model_validate(record)
    except ValidationError as error:
        raise UserError(f"{path}: not a verdict ({error.errors()[0]['msg']}); {remedy}") from error
