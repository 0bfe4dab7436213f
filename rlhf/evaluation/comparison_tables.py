"""Tables of a comparison: CSV files, and text for the terminal."""

from collections.abc import Sequence

import pandas as pd

from rlhf.evaluation.comparison_measures import GROUPS, Measure
from rlhf.evaluation.comparison_records import ALL, ComparisonReport
from rlhf.reports.intervals import Estimate, show_estimate
from rlhf.reports.significance import TEST_NAME


def tabulate_figures(comparison: ComparisonReport) -> pd.DataFrame:
    """Returns one row per contestant, hole family and measure that has a value."""
    rows = [
        (contestant, family, comparison.measures[name].group, name, *_ends(estimate))
        for contestant, own in comparison.contestants.items()
        for family, figures in own.figures.items()
        for name, estimate in figures.items()
        if estimate is not None
    ]
    places = ["contestant", "family", "judged_by", "measure"]
    return pd.DataFrame(rows, columns=[*places, "value", "low", "high", "photographs"])


def tabulate_tests(comparison: ComparisonReport) -> pd.DataFrame:
    """Returns one row per pair of contestants and tested measure; differences are second minus first."""
    rows = [(t.measure, t.first, t.second, *_ends(t.difference), t.p, t.p_holm) for t in comparison.comparisons]
    names = ["measure", "first", "second", "difference", "low", "high", "photographs", "p", "p_holm"]
    return pd.DataFrame(rows, columns=names)


def _ends(estimate: Estimate) -> tuple[float, float, float, int]:
    return estimate.value, estimate.low, estimate.high, estimate.clusters


def known_measures(comparison: ComparisonReport, group: str, family: str = ALL) -> dict[str, Measure]:
    """Returns the measures of a group that at least one contestant has."""
    figures = [own.figures[family] for own in comparison.contestants.values()]
    return {
        name: measure
        for name, measure in comparison.measures.items()
        if measure.group == group and any(own[name] is not None for own in figures)
    }


def show_figure(estimate: Estimate | None, spec: str) -> str:
    """Formats `value [low, high]`, or the value alone if it has no interval, which a note explains."""
    return show_estimate(estimate, spec, without="")


def show_p(p: float) -> str:
    """Formats a p value; never as 0, which a permutation test cannot give."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def show_tests(comparison: ComparisonReport, group: str) -> pd.DataFrame:
    """Returns a row per pair and a column per tested measure of a group, as text `difference (p after Holm)`."""
    found = {(t.measure, t.first, t.second): t for t in comparison.comparisons}
    tested = {measure for measure, _, _ in found}
    names = [name for name, measure in comparison.measures.items() if measure.group == group and name in tested]
    pairs = list(dict.fromkeys((t.first, t.second) for t in comparison.comparisons))

    def cell(name: str, pair: tuple[str, str]) -> str:
        """Formats the test of a pair by one measure; a dash if there is none."""
        test = found.get((name, *pair))
        spec = "+" + comparison.measures[name].spec
        return "-" if test is None else f"{test.difference.value:{spec}} ({show_p(test.p_holm)})"

    cells = [[cell(name, pair) for name in names] for pair in pairs]
    heads = [comparison.measures[name].label for name in names]
    return pd.DataFrame(cells, index=[f"{second} less {first}" for first, second in pairs], columns=heads)


def format_comparison(comparison: ComparisonReport) -> str:
    """Formats a table for each group of measures, so that the training reward stands apart from the judges."""
    lines: list[str] = []
    for group in GROUPS:
        measures = known_measures(comparison, group)
        if not measures:
            continue
        cells = [
            [show_figure(own.figures[ALL][name], measure.spec) for name, measure in measures.items()]
            for own in comparison.contestants.values()
        ]
        heads = [measure.label for measure in measures.values()]
        figures = pd.DataFrame(cells, index=list(comparison.contestants), columns=heads)
        lines += ["", f"{group}:", figures.to_string()]
        tests = show_tests(comparison, group)
        if not tests.empty:
            lines += [f"{group}, pairs (p by {TEST_NAME}, after Holm):", tests.to_string()]
    return "\n".join([*lines, "", *_describe_limits(comparison)])


def _describe_limits(comparison: ComparisonReport) -> Sequence[str]:
    changed = (f"{name} {own.known_pixels_differ}" for name, own in comparison.contestants.items())
    return [
        f"{comparison.prompts} prompts of {comparison.photographs} photographs, base: {comparison.base}; 95 % "
        "intervals over photographs; the gold judge is simulated",
        "known pixels changed: " + ", ".join(changed),
        *(f"note: {note}" for note in comparison.notes),
        *(f"left out: {gone.measure}: {gone.reason}" for gone in comparison.left_out),
    ]
