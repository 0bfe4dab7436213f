"""A comparison as tables: for the terminal, CSV and LaTeX."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf.evaluation.comparison import ALL
from rlhf.evaluation.comparison_measures import GROUPS
from rlhf.reports.intervals import show_estimate
from rlhf.storage.atomic_files import finite

FIGURE_COLUMNS = ("contestant", "family", "judged_by", "measure", "value", "low", "high", "photographs")
PAIR_COLUMNS = ("measure", "first", "second", "difference", "low", "high", "photographs", "p", "p_holm")
LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\^{}", "\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}"}
)


def known_measures(summary: Mapping[str, Any], group: str, family: str = ALL) -> list[str]:
    """Measures of a group that some contestant has."""
    figures = [record["figures"][family] for record in summary["contestants"].values()]
    return [
        name
        for name, measure in summary["measures"].items()
        if measure["group"] == group and any(own[name] is not None for own in figures)
    ]


def show_figure(estimate: Mapping[str, Any] | None, spec: str) -> str:
    """`value [low, high]`; where there is no interval the value alone, since a note tells why."""
    return show_estimate(estimate, spec, without="")


def show_p(p: float) -> str:
    """Never as 0, which a p of a permutation test cannot be."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def pair_table(summary: Mapping[str, Any], group: str) -> list[list[str]]:
    """A row per pair of contestants, a column per tested measure of a group: `difference (p after Holm)`; or none."""
    found = {(c["measure"], c["first"], c["second"]): c for c in summary["comparisons"]}
    names = [n for n, m in summary["measures"].items() if m["group"] == group and any(key[0] == n for key in found)]
    rows = []
    for first, second in dict.fromkeys((c["first"], c["second"]) for c in summary["comparisons"]):
        cells = [f"{second} less {first}"]
        for name in names:
            pair = found.get((name, first, second))
            spec = "+" + summary["measures"][name]["spec"]
            cells.append("-" if pair is None else f"{pair['difference']['value']:{spec}} ({show_p(pair['p_holm'])})")
        rows.append(cells)
    return [["", *(summary["measures"][name]["label"] for name in names)], *rows] if names else []


def format_contest(summary: Mapping[str, Any]) -> str:
    """One block for each group of measures, so that the training reward is never beside its judges."""
    lines: list[str] = []
    for group in GROUPS:
        names = known_measures(summary, group)
        if not names:
            continue
        measures = [summary["measures"][name] for name in names]
        table = [["", *(measure["label"] for measure in measures)]]
        for contestant, record in summary["contestants"].items():
            cells = [show_figure(record["figures"][ALL][name], summary["measures"][name]["spec"]) for name in names]
            table.append([contestant, *cells])
        lines += ["", f"{group}:", *_align(table)]
        if pairs := pair_table(summary, group):
            lines += [f"{group}, pairs (p by sign flips, after Holm):", *_align(pairs)]
    changed = {name: record["known_pixels_differ"] for name, record in summary["contestants"].items()}
    lines += [
        "",
        f"{summary['prompts']} prompts of {summary['photographs']} photographs, base: {summary['base']}; 95 % "
        "intervals over photographs; the gold judge is simulated",
        "known pixels changed: " + ", ".join(f"{name} {count}" for name, count in changed.items()),
        *(f"note: {note}" for note in summary["notes"]),
        *(f"left out: {gone['measure']}: {gone['reason']}" for gone in summary["left_out"]),
    ]
    return "\n".join(lines)


def _align(table: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def figures_csv(summary: Mapping[str, Any]) -> str:
    """A row per contestant, hole family and measure."""
    return _to_csv(FIGURE_COLUMNS, _figure_rows(summary))


def _figure_rows(summary: Mapping[str, Any]) -> Iterator[list[Any]]:
    for contestant, record in summary["contestants"].items():
        for family, figures in record["figures"].items():
            for name, estimate in figures.items():
                if estimate is not None:
                    ends = [finite(estimate[key]) for key in ("value", "low", "high")]
                    group = summary["measures"][name]["group"]
                    yield [contestant, family, group, name, *ends, estimate["clusters"]]


def comparisons_csv(summary: Mapping[str, Any]) -> str:
    """A row per pair of contestants and tested measure: second less first."""

    def rows() -> Iterator[list[Any]]:
        for pair in summary["comparisons"]:
            difference = pair["difference"]
            ends = [finite(difference[key]) for key in ("value", "low", "high")]
            yield [
                pair["measure"],
                pair["first"],
                pair["second"],
                *ends,
                difference["clusters"],
                pair["p"],
                pair["p_holm"],
            ]

    return _to_csv(PAIR_COLUMNS, rows())


def _to_csv(columns: tuple[str, ...], rows: Iterator[list[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def to_latex(summary: Mapping[str, Any]) -> str:
    """Booktabs tables: contestants by measures, and pairs by measures; a block of rows for each group of measures."""
    names = list(summary["contestants"])
    lines = [
        f"% {summary['prompts']} prompts of {summary['photographs']} photographs, base {escape(summary['base'])}; "
        "95 % intervals over photographs; the gold judge is simulated. Needs \\usepackage{booktabs}.",
        rf"\begin{{tabular}}{{l{'r' * len(names)}}}",
        r"\toprule",
        " & ".join(["", *map(escape, names)]) + r" \\",
    ]
    for group in GROUPS:
        own = known_measures(summary, group)
        lines += [r"\midrule", rf"\multicolumn{{{len(names) + 1}}}{{l}}{{\emph{{{escape(group)}}}}} \\"] if own else []
        for name in own:
            measure = summary["measures"][name]
            cells = [
                _latex_cell(summary["contestants"][contestant]["figures"][ALL][name], measure["spec"])
                for contestant in names
            ]
            lines.append(" & ".join([escape(measure["label"]), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", "", *_latex_pairs(summary)])


def _latex_pairs(summary: Mapping[str, Any]) -> Iterator[str]:
    yield "% Differences of pairs on the same prompts, and p by flipping the signs of photographs, after Holm."
    for group in GROUPS:
        if table := pair_table(summary, group):
            yield rf"\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}"
            yield r"\toprule"
            yield rf"\multicolumn{{{len(table[0])}}}{{l}}{{\emph{{{escape(group)}}}}} \\"
            yield " & ".join(map(escape, table[0])) + r" \\ \midrule"
            yield from (" & ".join(map(escape, row)) + r" \\" for row in table[1:])
            yield from (r"\bottomrule", r"\end{tabular}", "")


def _latex_cell(estimate: Mapping[str, Any] | None, spec: str) -> str:
    if estimate is None:
        return "--"
    value, _, interval = show_figure(estimate, spec).partition(" ")
    small = rf" {{\scriptsize {escape(interval)}}}" if interval else ""
    return escape(value) + small


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return text.translate(LATEX)
