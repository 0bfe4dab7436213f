"""Page of a comparison: tables, charts, and a gallery that can be filtered and sorted. The page loads nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rlhf.data.prompts import Prompt
from rlhf.evaluation.alarms import ALARM_RANGES
from rlhf.evaluation.comparison_measures import GROUPS, win_rate
from rlhf.evaluation.comparison_records import ALL, ComparisonReport, JudgedContestant
from rlhf.evaluation.comparison_tables import known_measures, show_figure, show_p
from rlhf.evaluation.evaluation import EvaluationSummary
from rlhf.evaluation.judging import Judged, describe_judge
from rlhf.reports.charts import GOLD, REWARD, draw_forest, draw_lines
from rlhf.reports.pages import MAX_PICTURE_PX, picture_uri, show_hole, write_page
from rlhf.reports.significance import SIGNIFICANT, TEST_NAME
from rlhf.storage.images import from_8bit, tensor_to_image

EXTREMES = 4
"""Number of best, worst and most disputed prompts of each contestant and judge that the gallery is sure to show."""
MAX_PROMPTS = 60
"""Largest number of prompts in the gallery."""
MAX_BYTES = 12_000_000
"""Largest size of the gallery's pictures together."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Prompt of the gallery with the first sample of every contestant."""

    prompt: Prompt
    pictures: dict[str, str]
    """Data URIs of the masked and the original picture and of every contestant's fill."""
    keys: dict[str, dict[str, float]]
    """Sort keys by contestant: the gain by each judge, and `disagreement`."""
    marks: dict[str, dict[str, float]]
    """Marks by contestant and judge."""
    is_small: bool


def write_comparison_page(
    report: ComparisonReport,
    entries: Sequence[JudgedContestant],
    prompts: Sequence[Prompt],
    evaluation: EvaluationSummary | None,
    path: Path,
) -> Path:
    """Writes the page; `evaluation` is the summary of a run, whose curve the page shows."""
    common = set.intersection(*(set(entry.judged.prompt_ids) for entry in entries))
    shown = [prompt for prompt in prompts if prompt.prompt_id in common]
    judged = {entry.name: entry.judged.select([prompt.prompt_id for prompt in shown]) for entry in entries}
    judges = {"reward": "training reward"} | {j: describe_judge(j) for j in entries[0].judged.held_out}
    return write_page(
        "comparison.html",
        path,
        report=report,
        settings={} if report.settings is None else asdict(report.settings),
        all_holes=ALL,
        groups={group: list(names) for group in GROUPS if (names := known_measures(report, group))},
        show_figure=show_figure,
        show_p=show_p,
        test_name=TEST_NAME,
        significant=SIGNIFICANT,
        charts=draw_charts(report) | (draw_curve(evaluation) if evaluation else {}),
        evaluation=evaluation,
        ranges=ALARM_RANGES,
        judges=judges,
        cards=list(make_cards(shown, judged, report.base)),
        judged_prompts=len(shown),
    )


def draw_charts(report: ComparisonReport) -> dict[str, dict[str, str]]:
    """Draws WinRate(1) of all contestants by training reward and gold judge, if it is known."""
    charts = {}
    for judge in ("reward", "gold"):
        figures = {name: own.figures[ALL][win_rate(judge, 1)] for name, own in report.contestants.items()}
        known = {name: figure for name, figure in figures.items() if figure and name != report.base}
        if known:
            charts[f"wins_{judge}"] = draw_forest(known, f"WinRate(1) over {report.base} (share)", 0.5)
    return charts


def draw_curve(evaluation: EvaluationSummary) -> dict[str, dict[str, str]]:
    """Draws training reward, gold judge and the figures that raise alarms by policy version."""
    curve, label = evaluation.curve, "policy version"
    versions = [point.policy_version for point in curve]
    charts = {
        "curve_reward": draw_lines(versions, {"": (REWARD, [p.reward for p in curve])}, label, "reward"),
        "curve_gold": draw_lines(versions, {"": (GOLD, [p.gold for p in curve])}, label, "gold mark"),
    }
    for name, kept in ALARM_RANGES.items():
        known = [(p.policy_version, p.monitors[name]) for p in curve if name in p.monitors]
        if known:
            x, figures = zip(*known, strict=True)
            values = {"": (REWARD, [figure.value for figure in figures])}
            reference = 1.0 if kept.is_ratio else 0.0
            charts[f"range_{name}"] = draw_lines(x, values, label, kept.label, band=figures, reference=reference)
    return charts


def make_cards(prompts: Sequence[Prompt], judged: Mapping[str, Judged], base: str) -> Iterator[Card]:
    """Yields the cards of the gallery until their pictures reach MAX_BYTES."""
    gains, disagreements = compare_marks(judged, base)
    room = MAX_BYTES
    for place in choose_prompts(gains, disagreements, len(prompts)):
        prompt = prompts[place]
        hole = prompt.mask[0].numpy() > 0.5
        original = tensor_to_image(prompt.image)
        pictures = {"masked": show_hole(original, hole), "original": original}
        pictures |= {name: tensor_to_image(from_8bit(own.images[place][0])) for name, own in judged.items()}
        uris = {name: picture_uri(picture) for name, picture in pictures.items()}
        room -= sum(map(len, uris.values()))
        if room < 0:
            return
        yield Card(
            prompt=prompt,
            pictures=uris,
            keys={
                name: {judge: float(gain[place]) for judge, gain in gains[name].items()}
                | {"disagreement": float(disagreements[name][place])}
                for name in judged
            },
            marks={
                name: {judge: float(own.marks[judge][place, 0]) for judge in gains[name]}
                for name, own in judged.items()
            },
            is_small=original.width <= MAX_PICTURE_PX // 2,
        )


def compare_marks(
    judged: Mapping[str, Judged], base: str
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Returns, for first samples, the gains [P] by contestant and judge, and the disagreements [P] by contestant.

    A gain is taken over the base; the base's own is over the mean of the prompt's fills. Judges rank all fills of all
    contestants by their distance from that mean; the disagreement on a fill is the largest distance, 0 to 1, between
    two judges' ranks.
    """
    names, judges = list(judged), ["reward", *next(iter(judged.values())).held_out]
    ranks: dict[str, np.ndarray] = {}
    gains: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    for judge in judges:
        marks = np.stack([judged[name].marks[judge][:, 0] for name in names])
        centred = marks - marks.mean(axis=0)
        ranks[judge] = centred.ravel().argsort().argsort().reshape(centred.shape) / max(1, centred.size - 1)
        for place, name in enumerate(names):
            gains[name][judge] = centred[place] if name == base else marks[place] - marks[names.index(base)]
    spread = np.stack(list(ranks.values()))
    disagreements = spread.max(axis=0) - spread.min(axis=0)
    return gains, {name: disagreements[place] for place, name in enumerate(names)}


def choose_prompts(
    gains: Mapping[str, Mapping[str, np.ndarray]], disagreements: Mapping[str, np.ndarray], count: int
) -> list[int]:
    """Returns the indices of the prompts to show: extremes of all contestants by every judge, then an even spread."""
    orders = [np.argsort(sign * by[judge]) for by in gains.values() for judge in by for sign in (-1, 1)]
    orders += [np.argsort(-values) for values in disagreements.values()]
    extremes = [int(order[rank]) for rank in range(min(EXTREMES, count)) for order in orders]
    spread = np.linspace(0, count - 1, min(count, MAX_PROMPTS)).astype(int).tolist()
    # A third of the gallery is reserved for prompts that are not extreme.
    first = list(dict.fromkeys(extremes))[: 2 * MAX_PROMPTS // 3]
    return list(dict.fromkeys([*first, *spread]))[:MAX_PROMPTS]
