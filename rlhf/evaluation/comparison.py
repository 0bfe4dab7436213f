"""Any number of contestants on the same prompts: measures with intervals, paired tests, tables and a page.

Intervals are by bootstrap over photographs. Pairs of contestants are tested by flipping the signs of whole
photographs, and all such tests together are one family for Holm's correction.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from rlhf.config.run_config import EvaluateConfig
from rlhf.data.prompts import Prompt
from rlhf.errors import UserError
from rlhf.evaluation.alarms import find_alarms, watch
from rlhf.evaluation.comparison_measures import (
    SET_MEASURES,
    SIZES,
    Measure,
    list_measures,
    measure_prompts,
    shares_noise,
)
from rlhf.evaluation.feature_distances import Features, measure_sets
from rlhf.evaluation.hole_measures import FIDELITY
from rlhf.evaluation.judging import LPIPS, Judged
from rlhf.reports.intervals import LEAST_PHOTOGRAPHS, Estimate, bootstrap_means, sign_flip_test, summarise_draws
from rlhf.reports.paired_statistics import holm
from rlhf.storage.images import from_8bit

SCHEMA_VERSION = 1
"""Of `contest.json`."""
BASE, ALIGNED = "base", "aligned"
"""The models of a run."""
ALL = "all"
"""Besides the hole families."""
SIGNIFICANT = 0.05
"""For p after Holm."""
LEAST_SHARE = 0.5
"""Of the prompts that all contestants must have."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contestant that was judged."""

    name: str
    spec: str
    follows_noise: bool
    judged: Judged


def find_common(entries: Sequence[Entry], prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[str]]:
    """The prompts that all have, and notes on what is missing.

    Raises UserError where that is less than LEAST_SHARE of the prompts.
    """
    common = set.intersection(*(set(entry.judged.prompt_ids) for entry in entries))
    kept = [prompt for prompt in prompts if prompt.prompt_id in common]
    notes = []
    for entry in entries:
        missing = [p.prompt_id for p in prompts if p.prompt_id not in set(entry.judged.prompt_ids)]
        if missing:
            such = f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
            notes.append(f"{entry.name} lacks {len(missing)} of {len(prompts)} prompts ({such})")
    if len(kept) < LEAST_SHARE * len(prompts):
        raise UserError("evaluate: too few common prompts: " + "; ".join(notes) + "; add the missing images")
    return kept, [f"{note}; all contestants are compared on the {len(kept)} that each has" for note in notes]


def summarise_contest(
    entries: Sequence[Entry],
    base: str,
    prompts: Sequence[Prompt],
    config: EvaluateConfig,
    features: Features | None = None,
) -> dict[str, Any]:
    """Figures of all contestants by hole family, pairwise tests and monitors; JSON apart from NaN.

    FID and KID, of all families together, need `features`.
    """
    prompts, notes = find_common(entries, prompts)
    names = [prompt.prompt_id for prompt in prompts]
    entries = [Entry(**vars(entry) | {"judged": entry.judged.select(names)}) for entry in entries]
    by_name = {entry.name: entry for entry in entries}
    follows = {entry.name: entry.follows_noise for entry in entries}
    measures = list_measures(entries[0].judged.held_out, has_lpips=LPIPS in entries[0].judged.marks)
    columns = {
        name: measure_prompts(entry.judged, by_name[base].judged, shares_noise=shares_noise(name, base, follows))
        for name, entry in by_name.items()
    }
    families = split_families(prompts)
    photographs = [prompt.photograph for prompt in prompts]
    found = {}
    for name, entry in by_name.items():
        figures = {
            family: estimate_all(columns[name], measures, photographs, places, config.bootstrap)
            for family, places in families.items()
        }
        watched = {} if name == base else watch(by_name[base].judged, entry.judged, photographs, config.bootstrap)
        found[name] = describe_entry(entry) | {"figures": figures, "monitors": watched}
    comparisons = compare_pairs(columns, measures, photographs, config.bootstrap)
    left_out = explain_missing(measures, columns, config)
    if features is not None and len(prompts) > 1:
        add_sets(found, measures, entries, prompts, features)
    elif features is not None:
        left_out.append({"measure": "FID, KID", "reason": "take two prompts or more"})
    return {
        "schema_version": SCHEMA_VERSION,
        "base": base,
        "prompts": len(prompts),
        "photographs": len(set(photographs)),
        "families": {
            family: {"prompts": len(places), "photographs": len({photographs[i] for i in places})}
            for family, places in families.items()
        },
        "contestants": found,
        "measures": {name: asdict(measure) for name, measure in measures.items()},
        "comparisons": comparisons,
        "alarms": find_all_alarms(entries, by_name[base], photographs, config.bootstrap),
        "notes": [
            *notes,
            *note_few(families, photographs),
            *note_weak_tests(len(comparisons), len(set(photographs))),
            *note_known_pixels(found),
        ],
        "left_out": left_out,
    }


def describe_entry(entry: Entry) -> dict[str, Any]:
    """What it is, and whether it kept what was known."""
    return {
        "spec": entry.spec,
        "samples_per_prompt": entry.judged.images.shape[1],
        "follows_noise": entry.follows_noise,
        "known_pixels_differ": entry.judged.known_pixels_differ,
    }


def split_families(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Places of the prompts by hole family, with ALL of them first."""
    names = sorted({prompt.hole for prompt in prompts})
    own = {name: [i for i, prompt in enumerate(prompts) if prompt.hole == name] for name in names}
    return {ALL: list(range(len(prompts)))} | own


def add_sets(
    found: Mapping[str, dict[str, Any]],
    measures: dict[str, Measure],
    entries: Sequence[Entry],
    prompts: Sequence[Prompt],
    features: Features,
) -> None:
    """Add FID and KID, of first samples against the originals, without an interval; None for single families."""
    originals = torch.stack([prompt.image for prompt in prompts])
    sets = {entry.name: from_8bit(entry.judged.images[:, 0]) for entry in entries}
    measures |= SET_MEASURES
    photographs = len({prompt.photograph for prompt in prompts})
    for name, distances in measure_sets(features, sets, originals).items():
        for family, figures in found[name]["figures"].items():
            for measure, value in distances.items():
                estimate = Estimate(value=value, low=math.nan, high=math.nan, clusters=photographs)
                figures[measure] = asdict(estimate) if family == ALL else None


def estimate_all(
    columns: Mapping[str, np.ndarray],
    measures: Mapping[str, Measure],
    photographs: Sequence[str],
    places: Sequence[int],
    resamples: int,
) -> dict[str, dict[str, Any] | None]:
    """Every measure over some of the prompts; None where the contestant has none."""
    own = [photographs[place] for place in places]
    names = [name for name in measures if name in columns]
    values = np.stack([columns[name][list(places)] for name in names], axis=1)
    means, draws = bootstrap_means(values, own, resamples=resamples)
    found: dict[str, dict[str, Any] | None] = dict.fromkeys(measures)
    for place, name in enumerate(names):
        if np.isfinite(means[place]):
            known = {own[i] for i in np.flatnonzero(np.isfinite(values[:, place])).tolist()}
            found[name] = asdict(summarise_draws(means[place], draws[:, place], len(known)))
    return found


def compare_pairs(
    columns: Mapping[str, Mapping[str, np.ndarray]],
    measures: Mapping[str, Measure],
    photographs: Sequence[str],
    resamples: int,
) -> list[dict[str, Any]]:
    """Every pair of contestants by every tested measure: second less first, p by sign flips, and p after Holm."""
    found: list[dict[str, Any]] = []
    for name, measure in measures.items():
        for first, second in combinations(columns, 2):
            if not measure.is_tested or name not in columns[first] or name not in columns[second]:
                continue
            difference = columns[second][name] - columns[first][name]
            known = np.isfinite(difference)
            own = [photographs[i] for i in np.flatnonzero(known).tolist()]
            if not own:
                continue
            mean, draws = bootstrap_means(difference[known, None], own, resamples=resamples)
            estimate = summarise_draws(mean[0], draws[:, 0], len(set(own)))
            p = sign_flip_test(difference[known], own)
            found.append({"measure": name, "first": first, "second": second, "difference": asdict(estimate), "p": p})
    for comparison, adjusted in zip(found, holm([c["p"] for c in found]), strict=True):
        comparison["p_holm"] = adjusted
    return found


def find_all_alarms(
    entries: Sequence[Entry], base: Entry, photographs: Sequence[str], resamples: int
) -> list[dict[str, Any]]:
    """About models against the base."""
    models = [e for e in entries if e.follows_noise and base.follows_noise and e.name != base.name]
    pairs = [([base.name, entry.name], [base.judged, entry.judged]) for entry in models]
    return [alarm for names, path in pairs for alarm in find_alarms(names, path, photographs, resamples)]


def note_few(families: Mapping[str, Sequence[int]], photographs: Sequence[str]) -> list[str]:
    """Which families are of too few photographs for an interval."""
    few = [f for f, places in families.items() if len({photographs[i] for i in places}) < LEAST_PHOTOGRAPHS]
    if not few:
        return []
    where = "here" if ALL in few else f"for {', '.join(sorted(few))}"
    return [f"fewer than {LEAST_PHOTOGRAPHS} photographs {where}: too few for an interval, so none is given"]


def note_weak_tests(tests: int, photographs: int) -> list[str]:
    """Where even a difference of one sign in all photographs, of p = 2 in 2^photographs, is lost among the tests."""
    least = tests * 2.0 ** (1 - photographs)
    if not tests or least < SIGNIFICANT:
        return []
    return [
        f"{photographs} photographs are too few for {tests} tests: after Holm's correction no p can be below "
        f"{min(least, 1):.2g}"
    ]


def note_known_pixels(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Who changed what was to stay."""
    return [
        f"{name} changed {record['known_pixels_differ']} known pixels, outside the holes; judges saw them as they are"
        for name, record in found.items()
        if record["known_pixels_differ"]
    ]


def explain_missing(
    measures: Mapping[str, Measure], columns: Mapping[str, Mapping[str, np.ndarray]], config: EvaluateConfig
) -> list[dict[str, str]]:
    """Measures that no contestant has, and why."""
    missing = [name for name in measures if not any(name in own for own in columns.values())]
    found = []
    for size in SIZES:
        if any(name.endswith(f"_win_{size}") for name in missing):
            reason = f"takes {size + 1} samples of a model; evaluate.samples_per_prompt is {config.samples_per_prompt}"
            found.append({"measure": f"WinRate({size})", "reason": reason})
    if "diversity" in missing:
        found.append({"measure": "Var, diversity", "reason": "take two samples or more of a prompt"})
    for name in (name for name in missing if name in FIDELITY):
        reason = "no fill has a value, as the PSNR of an exact copy has none"
        found.append({"measure": measures[name].label, "reason": reason})
    return found


def check_base(base: str, names: Sequence[str]) -> None:
    """UserError where the contestant that others are compared with is not one."""
    if base not in names:
        raise UserError(f"--base {base}: no contestant of that name; there are {', '.join(names)}")
