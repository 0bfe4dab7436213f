"""Compares any number of contestants on the same prompts: measures with intervals, and paired tests.

Intervals are over photographs. Holm's correction takes the tests of all pairs of contestants as one family.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from rlhf.config.run_config import EvaluateConfig
from rlhf.data.prompts import Prompt
from rlhf.evaluation.alarms import Alarm, estimate_ranged, find_alarms
from rlhf.evaluation.comparison_measures import (
    SET_MEASURES,
    Measure,
    list_measures,
    measure_prompts,
)
from rlhf.evaluation.comparison_notes import (
    explain_missing,
    find_common,
    note_few,
    note_known_pixels,
)
from rlhf.evaluation.comparison_records import (
    ALL,
    ComparisonReport,
    ContestantFigures,
    FamilySize,
    JudgedContestant,
    MissingMeasure,
)
from rlhf.evaluation.feature_distances import Features, measure_sets
from rlhf.reports.intervals import Estimate, estimate_figure, estimate_share
from rlhf.reports.significance import compare_pairs, note_weak_tests
from rlhf.storage.images import from_8bit


def summarise_comparison(
    entries: Sequence[JudgedContestant],
    base: str,
    prompts: Sequence[Prompt],
    config: EvaluateConfig,
    features: Features | None = None,
) -> ComparisonReport:
    """Returns the figures of all contestants, tests of all pairs, and alarms; FID and KID need `features`."""
    prompts, notes = find_common(entries, prompts)
    photographs = [prompt.photograph for prompt in prompts]
    entries = [replace(entry, judged=entry.judged.select([p.prompt_id for p in prompts])) for entry in entries]
    reference = next(entry for entry in entries if entry.name == base)
    measures = list_measures(reference.judged.held_out, reference.judged.marks)
    columns, contestants = {}, {}
    for entry in entries:
        noise = entry.shares_noise_with(reference)
        own = columns[entry.name] = measure_prompts(entry.judged, reference.judged, shares_noise=noise)
        contestants[entry.name] = describe_contestant(entry, reference, own, measures, prompts)
    left_out = explain_missing(measures, columns, config)
    if features is not None and len(prompts) > 1:
        measures = measures | SET_MEASURES
        add_sets(contestants, entries, prompts, features)
    elif features is not None:
        left_out.append(MissingMeasure(measure="FID, KID", reason="take two prompts or more"))
    families = split_families(prompts)
    notes += note_few(families, photographs)
    tests = compare_pairs(columns, [name for name in measures if measures[name].is_tested], photographs)
    count = len(set(photographs))
    return ComparisonReport(
        base=base,
        prompts=len(prompts),
        photographs=count,
        families={family: FamilySize.of(places, photographs) for family, places in families.items()},
        contestants=contestants,
        measures=measures,
        comparisons=tests,
        alarms=find_all_alarms(entries, reference, photographs),
        notes=[*notes, *note_weak_tests(len(tests), count), *note_known_pixels(contestants)],
        left_out=left_out,
    )


def describe_contestant(
    entry: JudgedContestant,
    base: JudgedContestant,
    columns: Mapping[str, np.ndarray],
    measures: Mapping[str, Measure],
    prompts: Sequence[Prompt],
) -> ContestantFigures:
    """Returns the figures of a contestant from its measures [P] in `columns`."""
    photographs = [prompt.photograph for prompt in prompts]
    is_base = entry.name == base.name
    return ContestantFigures(
        spec=entry.spec,
        samples_per_prompt=entry.judged.samples,
        follows_noise=entry.follows_noise,
        known_pixels_differ=entry.judged.known_pixels_differ,
        figures={
            family: estimate_all(columns, measures, photographs, places)
            for family, places in split_families(prompts).items()
        },
        monitors={} if is_base else estimate_ranged(base.judged, entry.judged, photographs),
    )


def split_families(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Returns the indices of the prompts by hole family, with ALL of them first."""
    names = sorted({prompt.hole for prompt in prompts})
    own = {name: [i for i, prompt in enumerate(prompts) if prompt.hole == name] for name in names}
    return {ALL: list(range(len(prompts)))} | own


def add_sets(
    contestants: Mapping[str, ContestantFigures],
    entries: Sequence[JudgedContestant],
    prompts: Sequence[Prompt],
    features: Features,
) -> None:
    """Adds FID and KID of first samples against the originals to the figures of all families; None for single ones."""
    originals = [prompt.image for prompt in prompts]
    images = {entry.name: [from_8bit(samples[0]) for samples in entry.judged.images] for entry in entries}
    photographs = len({prompt.photograph for prompt in prompts})
    for name, distances in measure_sets(features, images, originals).items():
        for family, found in contestants[name].figures.items():
            for measure, value in distances.items():
                estimate = Estimate(value=value, low=math.nan, high=math.nan, clusters=photographs)
                found[measure] = estimate if family == ALL else None


def estimate_all(
    columns: Mapping[str, np.ndarray],
    measures: Mapping[str, Measure],
    photographs: Sequence[str],
    places: Sequence[int],
) -> dict[str, Estimate | None]:
    """Returns every measure over the prompts at `places`; None if the contestant has no value."""
    own = [photographs[place] for place in places]
    found: dict[str, Estimate | None] = dict.fromkeys(measures)
    for name, measure in measures.items():
        if name in columns and np.isfinite(values := columns[name][list(places)]).any():
            found[name] = (estimate_share if measure.is_share else estimate_figure)(values, own)
    return found


def find_all_alarms(
    entries: Sequence[JudgedContestant], base: JudgedContestant, photographs: Sequence[str]
) -> list[Alarm]:
    """Returns the alarms for all models, each compared with the base."""
    models = [e for e in entries if e.follows_noise and base.follows_noise and e.name != base.name]
    pairs = [([base.name, entry.name], [base.judged, entry.judged]) for entry in models]
    return [alarm for names, path in pairs for alarm in find_alarms(names, path, photographs)]
