"""The page of a comparison: tables, charts, and a gallery that can be filtered and sorted. It loads nothing."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.data.prompts import Prompt
from rlhf.evaluation.alarms import MONITORS
from rlhf.evaluation.comparison import ALL, Entry
from rlhf.evaluation.comparison_measures import GROUPS, describe_judge, win_rate
from rlhf.evaluation.comparison_tables import known_measures, show_figure, show_p
from rlhf.evaluation.judging import Judged
from rlhf.reports.charts import GOLD, REWARD, draw_forest, draw_lines
from rlhf.reports.pages import MAX_PICTURE_PX, picture_uri, show_hole, write_page
from rlhf.storage.images import from_8bit, tensor_to_image

EXTREMES = 4
"""Best, worst and most disagreed prompts of each contestant and judge that the gallery is sure to have."""
MAX_PROMPTS = 60
"""In the gallery."""
MAX_BYTES = 12_000_000
"""Of the gallery's pictures."""


def write_contest_page(
    contest: Mapping[str, Any],
    entries: Sequence[Entry],
    prompts: Sequence[Prompt],
    evaluation: Mapping[str, Any] | None,
    path: Path,
) -> Path:
    """Write the page; `evaluation` is the summary of a run, whose curve it shows."""
    common = set.intersection(*(set(entry.judged.prompt_ids) for entry in entries))
    shown = [prompt for prompt in prompts if prompt.prompt_id in common]
    judged = {entry.name: entry.judged.select([prompt.prompt_id for prompt in shown]) for entry in entries}
    judges = {"reward": "training reward"} | {j: describe_judge(j) for j in entries[0].judged.held_out}
    cards = list(make_cards(shown, judged, contest["base"]))
    return write_page(
        "contest.html",
        path,
        contest=contest,
        all_holes=ALL,
        groups={group: names for group in GROUPS if (names := known_measures(contest, group))},
        show_figure=show_figure,
        show_p=show_p,
        charts=draw_charts(contest) | (draw_curve(evaluation) if evaluation else {}),
        evaluation=evaluation,
        monitors=MONITORS,
        judges=judges,
        cards=cards,
        judged_prompts=len(shown),
    )


def draw_charts(contest: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """WinRate(1) of everyone by training reward and gold judge, where it is known."""
    charts = {}
    for judge in ("reward", "gold"):
        figures = {n: r["figures"][ALL][win_rate(judge, 1)] for n, r in contest["contestants"].items()}
        known = {name: figure for name, figure in figures.items() if figure and name != contest["base"]}
        if known:
            charts[f"wins_{judge}"] = draw_forest(known, f"WinRate(1) over {contest['base']} (share)", 0.5)
    return charts


def draw_curve(evaluation: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Monitors, training reward and gold judge by policy version."""
    curve = evaluation["curve"]
    versions = [point["policy_version"] for point in curve]
    charts = {
        "curve_reward": draw_lines(versions, {"": (REWARD, [p["reward"] for p in curve])}, "policy version", "reward"),
        "curve_gold": draw_lines(versions, {"": (GOLD, [p["gold"] for p in curve])}, "policy version", "gold mark"),
    }
    for name, monitor in MONITORS.items():
        known = [(p["policy_version"], p["monitors"][name]) for p in curve if name in p["monitors"]]
        if known:
            x, figures = zip(*known, strict=True)
            charts[f"monitor_{name}"] = draw_lines(
                list(x),
                {"": (REWARD, [figure["value"] for figure in figures])},
                "policy version",
                monitor.label,
                band=[(figure["low"], figure["high"]) for figure in figures],
                reference=1.0 if monitor.is_ratio else 0.0,
            )
    return charts


def make_cards(prompts: Sequence[Prompt], judged: Mapping[str, Judged], base: str) -> Iterator[dict[str, Any]]:
    """Prompts of the gallery, with the first sample of every contestant, its marks, and what it is sorted by."""
    gains, disagreements = compare_marks(judged, base)
    room = MAX_BYTES
    for place in choose_prompts(gains, disagreements, len(prompts)):
        prompt = prompts[place]
        hole = prompt.mask[0].numpy() > 0.5
        original = tensor_to_image(prompt.image)
        pictures = {"masked": show_hole(original, hole), "original": original}
        pictures |= {name: tensor_to_image(from_8bit(own.images[place, 0])) for name, own in judged.items()}
        uris = {name: picture_uri(picture) for name, picture in pictures.items()}
        room -= sum(map(len, uris.values()))
        if room < 0:
            return
        keys = {
            name: {judge: float(gains[name][judge][place]) for judge in gains[name]}
            | {"disagreement": float(disagreements[name][place])}
            for name in judged
        }
        marks = {
            name: {judge: float(own.marks[judge][place, 0]) for judge in gains[name]} for name, own in judged.items()
        }
        is_small = original.width <= MAX_PICTURE_PX // 2
        yield {"prompt": prompt, "pictures": uris, "keys": keys, "marks": marks, "is_small": is_small}


def compare_marks(
    judged: Mapping[str, Judged], base: str
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Of first samples, [P] each: gain over the base by contestant and judge, and how far judges disagree on it.

    Disagreement is the largest distance between two judges' ranks of a fill, 0 to 1, among all fills of all
    contestants, by how much better each is than the mean of its prompt's. The base's gain is over that mean.
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
    """Places of the prompts to show: the extremes of everyone by every judge in turn, then some spread over all."""
    orders = [np.argsort(sign * by[judge]) for by in gains.values() for judge in by for sign in (-1, 1)]
    orders += [np.argsort(-values) for values in disagreements.values()]
    extremes = [int(order[rank]) for rank in range(min(EXTREMES, count)) for order in orders]
    spread = np.linspace(0, count - 1, min(count, MAX_PROMPTS)).astype(int).tolist()
    # A third of the places is for prompts that are no extremes.
    first = list(dict.fromkeys(extremes))[: 2 * MAX_PROMPTS // 3]
    return list(dict.fromkeys([*first, *spread]))[:MAX_PROMPTS]
