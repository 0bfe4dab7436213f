"""Limits of a comparison: missing prompts, few photographs, changed known pixels, measures without a value."""

from collections.abc import Mapping, Sequence

import numpy as np

from rlhf.config.run_config import EvaluateConfig
from rlhf.data.prompts import Prompt
from rlhf.errors import UserError
from rlhf.evaluation.comparison_measures import SIZES, Measure
from rlhf.evaluation.comparison_records import ALL, ContestantFigures, JudgedContestant, MissingMeasure
from rlhf.evaluation.hole_measures import FIDELITY
from rlhf.reports.intervals import LEAST_PHOTOGRAPHS

LEAST_SHARE = 0.5
"""Smallest share of the prompts that all contestants must have filled."""


def find_common(entries: Sequence[JudgedContestant], prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[str]]:
    """Returns the prompts that all contestants filled, and notes on the missing ones.

    Raises UserError if they are less than LEAST_SHARE of the prompts.
    """
    common = set.intersection(*(set(entry.judged.prompt_ids) for entry in entries))
    kept = [prompt for prompt in prompts if prompt.prompt_id in common]
    notes = []
    for entry in entries:
        missing = [p.prompt_id for p in prompts if p.prompt_id not in set(entry.judged.prompt_ids)]
        if missing:
            examples = f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
            notes.append(f"{entry.name} lacks {len(missing)} of {len(prompts)} prompts ({examples})")
    if len(kept) < LEAST_SHARE * len(prompts):
        raise UserError("evaluate: too few common prompts: " + "; ".join(notes) + "; add the missing images")
    return kept, [f"{note}; all contestants are compared on the {len(kept)} that each has" for note in notes]


def note_few(families: Mapping[str, Sequence[int]], photographs: Sequence[str]) -> list[str]:
    """Returns a note on the hole families with too few photographs for an interval."""
    few = [f for f, places in families.items() if len({photographs[i] for i in places}) < LEAST_PHOTOGRAPHS]
    if not few:
        return []
    where = "here" if ALL in few else f"for {', '.join(sorted(few))}"
    return [f"fewer than {LEAST_PHOTOGRAPHS} photographs {where}: too few for an interval, so none is given"]


def note_known_pixels(contestants: Mapping[str, ContestantFigures]) -> list[str]:
    """Returns a note on each contestant that changed pixels outside the holes."""
    return [
        f"{name} changed {found.known_pixels_differ} known pixels, outside the holes; judges saw them as they are"
        for name, found in contestants.items()
        if found.known_pixels_differ
    ]


def explain_missing(
    measures: Mapping[str, Measure], columns: Mapping[str, Mapping[str, np.ndarray]], config: EvaluateConfig
) -> list[MissingMeasure]:
    """Returns the measures that no contestant has, with the reasons."""
    missing = [name for name in measures if not any(name in own for own in columns.values())]
    found = []
    for size in SIZES:
        if any(name.endswith(f"_win_{size}") for name in missing):
            reason = f"takes {size + 1} samples of a model; evaluate.samples_per_prompt is {config.samples_per_prompt}"
            found.append(MissingMeasure(measure=f"WinRate({size})", reason=reason))
    if "diversity" in missing:
        found.append(MissingMeasure(measure="Var, diversity", reason="take two samples or more of a prompt"))
    for name in (name for name in missing if name in FIDELITY):
        reason = "no fill has a value, as the PSNR of an exact copy has none"
        found.append(MissingMeasure(measure=measures[name].label, reason=reason))
    return found
