"""The verdict of the gate, as it lies beside the catalogue: what was compared on what, the figures, the limits."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf.config.gate_config import GateConfig
from rlhf.errors import UserError
from rlhf.promotion.catalogue import ServedPolicy
from rlhf.storage.atomic_files import atomic_write_json, check_schema, read_json

SCHEMA_VERSION = 1
JUDGE = "gold judge, simulated: the noiseless utility of the simulated annotators; no policy was trained on it"


class Record(BaseModel):
    """Base of what a verdict is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Comparison(Record):
    """Who against whom, on what and how: where two are equal, so are their figures."""

    base: str
    """The model that both are policies of."""
    contender: str
    """Checksum of its weights."""
    incumbent: str | None
    """Checksum of the weights that answer now; None is the base model itself."""
    prompts: str
    """Checksum of the held-out prompts: ids, photographs, pictures, masks."""
    split: str
    """Which of the prompts."""
    reward: str
    """Checksum of the reward folder's files; its figure is shown, but decides nothing."""
    seed: int
    """Of the noise, the same on both sides."""
    settings: dict[str, Any]
    """`evaluate` and what of `model` changes pictures."""
    software: str
    """Version of prefpaint-ray."""


class Check(Record):
    """One figure against its limit."""

    figure: str
    """Its name."""
    value: float | None
    """As it was measured; None is no number."""
    low: float | None = None
    """Lower end of the 95 % interval, which decides."""
    high: float | None = None
    """Upper end."""
    limit: float | None
    """To be exceeded by `low`, or for a count not to be exceeded by `value`; None: shown only."""
    passed: bool
    """Whether it keeps to the limit."""


class Verdict(Record):
    """Whether a policy may answer under a name."""

    schema_version: int = SCHEMA_VERSION
    name: str
    """That the policy is to answer under."""
    contender: ServedPolicy
    """The policy, where it lay when it was judged."""
    incumbent: ServedPolicy
    """What answered when it was judged."""
    comparison: Comparison
    """Checksums and settings."""
    judge: str = JUDGE
    """Whose marks the WinRate counts."""
    prompts: int
    """Judged on, each with `settings.samples_per_prompt` samples of either policy."""
    photographs: int
    """That the prompts are of."""
    judged: str
    """When it was painted, ISO 8601."""
    figures: dict[str, Any]
    """Of `rlhf.evaluation.evaluation.compare`: intervals at 95 %, from a bootstrap over photographs."""
    decided: str
    """When the limits were applied, ISO 8601."""
    limits: GateConfig
    """In force then."""
    checks: tuple[Check, ...]
    """Figure by figure."""
    passed: bool
    """All checks passed."""
    forced: bool
    """Promotion was asked for whatever the checks say."""

    def decide(self, limits: GateConfig, *, forced: bool) -> "Verdict":
        """The same figures under these limits."""
        checks = tuple(check_figures(self.figures, limits))
        passed = all(check.passed for check in checks)
        found = {"limits": limits, "checks": checks, "passed": passed, "forced": forced, "decided": timestamp()}
        return self.model_copy(update=found)


def timestamp() -> str:
    """Now, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_figures(figures: Mapping[str, Any], limits: GateConfig) -> Iterator[Check]:
    """The figures that decide, and the reward's WinRate, which does not: the policy was trained to raise it."""
    asked = (
        ("win_rate", limits.min_win_rate),
        ("win_rate_reward", None),
        ("sharpness_ratio", limits.min_sharpness_ratio),
        ("diversity_ratio", limits.min_diversity_ratio),
    )
    for name, limit in asked:
        estimate = {end: figures[name][end] for end in ("value", "low", "high")}
        low = estimate["low"]
        passed = limit is None or (low is not None and low > limit)
        yield Check(figure=name, **estimate, limit=limit, passed=passed)
    differing = figures["known_pixels_differ"]
    yield Check(figure="known_pixels_differ", value=differing, limit=0, passed=differing == 0)


def verdict_file(catalogue: Path, name: str, contender: ServedPolicy, incumbent: ServedPolicy) -> Path:
    """Where the verdict on a pair lies: `names.verdicts/NAME-VERSION-over-VERSION.json` beside `names.json`."""
    folder = catalogue.parent / f"{catalogue.stem}.verdicts"
    return folder / f"{name}-{contender.version}-over-{incumbent.version}.json"


def write_verdict(verdict: Verdict, path: Path) -> None:
    """Whole or not at all."""
    atomic_write_json(path, verdict.model_dump(mode="json"))


def read_verdict(path: Path) -> Verdict:
    """UserError where it is damaged or of a newer schema."""
    remedy = "remove it, and the policies are judged anew"
    record = read_json(path, remedy)
    check_schema(record.get("schema_version") if isinstance(record, dict) else None, SCHEMA_VERSION, path)
    try:
        return Verdict.model_validate(record)
    except ValidationError as error:
        raise UserError(f"{path}: not a verdict ({error.errors()[0]['msg']}); {remedy}") from error
