"""Tests whether active choice pays: rewards from equal numbers of annotations, chosen by uncertainty or at random.

Each split of the photographs starts from a reward of a random portion of the prompts. Two further portions are then
annotated as in `rlhf rounds`: each is chosen by the reward so far or at random, and the reward is fitted again to all
annotations or updated with the new ones. Held-out photographs judge. All rounds use the same candidates and one
normalisation of their scores, so only the selection differs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from pydantic import JsonValue

from benchmarks.studies.annotated import load_annotated
from benchmarks.studies.command_line import run_as_program
from benchmarks.studies.selection_figure import draw_errors
from benchmarks.studies.selection_records import PointMeans, RewardPoint, SelectionSummary
from rlhf.commands.options import Config, Out, Overrides, resolve_config, save_config
from rlhf.config.run_config import RewardConfig
from rlhf.data.annotated_images import AnnotatedImages, distinct_images, split_photographs
from rlhf.evaluation.tasks.resplits import average, run_resplits
from rlhf.reports.intervals import show_estimate
from rlhf.rewards.learned.bound import update_ridge
from rlhf.rewards.learned.feature_training import with_descriptions
from rlhf.rewards.learned.prompt_choice import order_by_uncertainty, order_randomly, take_prompts
from rlhf.rewards.learned.reward_figures import pair_accuracy
from rlhf.rewards.learned.reward_memory import RewardMemory, no_prompts, rows_to_add, with_features
from rlhf.rewards.learned.reward_model import RewardModel
from rlhf.rewards.learned.reward_training import features_of, fit_reward
from rlhf.storage.atomic_files import atomic_write_json

SELECTIONS = ("uncertain", "random")
"""Values of `rlhf annotate --select`."""
LEARNING = ("refit", "update")
"""Fit to all annotations again; or keep the features and update V and the head with the new ones."""
HELD_OUT = 0.3
"""Share of the photographs that are held out as judges."""
ROUNDS = 2
"""Number of further portions after the first."""
Curves = dict[str, list[RewardPoint]]
"""Figures of one split after each portion, by learning and selection."""
ERRORS = tuple(field.name for field in fields(RewardPoint) if field.name != "annotations")


def study_selection(
    data: AnnotatedImages,
    noiseless: torch.Tensor | None,
    config: RewardConfig,
    out: Path,
    *,
    seeds: int,
    portion: float,
) -> SelectionSummary:
    """Compares the selections on `seeds` splits of the photographs; each split is a file, so a study can be resumed.

    `noiseless` are the simulated annotators' scores without noise, [N]; `portion` is the share of the candidates,
    without the held-out ones, that each round annotates. Writes `resplit-*.json`, `selection_study.png` and, last,
    `selection_study.json`. Intervals are over splits of the same photographs: they say what another
    split would show, not other photographs. Raises UserError if `out` holds a study with other settings.
    """
    settings: dict[str, JsonValue] = {
        "config": config.model_dump(mode="json"),
        "portion": portion,
        "rows": len(data.keys),
    }
    data = with_descriptions(data, config, 0)

    def measure(seed: int) -> Curves:
        return compare_selections(data, noiseless, config, seed, portion)

    records = run_resplits(out, settings, seeds, measure, Curves, stage="study selection")
    summary = summarise(records)
    draw_errors(summary, out / "selection_study.png")
    atomic_write_json(out / "selection_study.json", asdict(summary))
    return summary


@dataclass(frozen=True, kw_only=True)
class TaughtReward:
    """Reward with the prompts from which it learned."""

    model: RewardModel
    memory: RewardMemory
    prompts: frozenset[str]


def compare_selections(
    data: AnnotatedImages, noiseless: torch.Tensor | None, config: RewardConfig, seed: int, portion: float
) -> Curves:
    """Returns the figures of one split after each portion; all curves share the first portion."""
    pool_photographs, judges = split_photographs(data.photographs, (1 - HELD_OUT, HELD_OUT), seed)
    pool, held_out = data.of(pool_photographs), data.of(judges)
    truth = None if noiseless is None else noiseless[[name in judges for name in data.photographs]]
    counts = Counter(prompt_id for prompt_id, _ in set(pool.keys))
    limit = round(portion * sum(counts.values()))
    first = learn_anew(pool, take_prompts(order_randomly(list(counts), seed=seed), counts, limit), config, seed)
    figures = {}
    for learning in LEARNING:
        for selection in SELECTIONS:
            learner, curve = first, [judge_reward(first, pool, held_out, truth)]
            for number in range(1, ROUNDS + 1):
                left = {name: count for name, count in counts.items() if name not in learner.prompts}
                order = order_prompts(learner, pool, list(left), selection, seed + 1000 * number)
                chosen = take_prompts(order, left, limit)
                if learning == "refit":
                    learner = learn_anew(pool, [*learner.prompts, *chosen], config, seed)
                else:
                    learner = take_in(learner, pool, chosen)
                curve.append(judge_reward(learner, pool, held_out, truth))
            figures[f"{learning} {selection}"] = curve
    return figures


def learn_anew(pool: AnnotatedImages, prompts: list[str], config: RewardConfig, seed: int) -> TaughtReward:
    """Fits a reward to all annotations of some prompts, as `train_reward` does."""
    data = rows_of(pool, prompts)
    a, b, c, d = (data.of(part) for part in split_photographs(data.photographs, config.parts, seed))
    fitted = fit_reward(a, b, c, config, seed)
    seen = no_prompts(config.feature_dim + 1).added(fitted.corrected_on)
    report = with_features(features_of(fitted.model.network, d), d)
    memory = RewardMemory(seen=seen, calibration=fitted.calibrated_on, report=report, seen_ids=frozenset())
    return TaughtReward(model=fitted.model, memory=memory, prompts=frozenset(prompts))


def take_in(learner: TaughtReward, pool: AnnotatedImages, prompts: list[str]) -> TaughtReward:
    """Updates a reward with further prompts, as `update_reward` does."""
    data, model = rows_of(pool, prompts), learner.model
    effects = model.calibration.prompt_effects
    assert effects is not None, "`fit_reward` measures them"
    memory, learnt = learner.memory.adding(with_features(features_of(model.network, data), data), [])
    head = update_ridge(model.head, *rows_to_add(learnt, learner.memory.seen, effects)) if learnt.keys else model.head
    return TaughtReward(model=replace(model, head=head), memory=memory, prompts=learner.prompts.union(prompts))


def order_prompts(
    learner: TaughtReward, pool: AnnotatedImages, prompts: list[str], selection: str, seed: int
) -> list[str]:
    """Orders prompts as `rlhf annotate --select` does."""
    if selection == "random":
        return order_randomly(prompts, seed=seed)
    shown = rows_of(pool, prompts)
    first_rows, _ = distinct_images(shown)
    uncertainty = learner.model.head.uncertainty(features_of(learner.model.network, shown))
    rows: dict[str, list[int]] = {}
    for row in first_rows.tolist():
        rows.setdefault(shown.keys[row][0], []).append(row)
    return order_by_uncertainty({name: uncertainty[own] for name, own in rows.items()})


def rows_of(data: AnnotatedImages, prompts: list[str]) -> AnnotatedImages:
    """Returns the annotations of some prompts."""
    names = set(prompts)
    return data.rows([row for row, (prompt_id, _) in enumerate(data.keys) if prompt_id in names])


def judge_reward(
    learner: TaughtReward, pool: AnnotatedImages, held_out: AnnotatedImages, truth: torch.Tensor | None
) -> RewardPoint:
    """Returns the errors of the reward on held-out annotations; `truth` [N] are their scores without noise."""
    reward = learner.model.head.reward(features_of(learner.model.network, held_out))
    figures: dict[str, Any] = {}
    for name, scores in (("", held_out.scores.double()), ("_noiseless", truth)):
        if scores is not None:
            figures[f"squared_error{name}"] = float((scores - reward).square().mean())
            figures[f"absolute_error{name}"] = float((scores - reward).abs().mean())
            figures[f"pair_accuracy{name}"] = pair_accuracy(reward.numpy(), scores.numpy(), held_out.keys)
    return RewardPoint(annotations=sum(prompt_id in learner.prompts for prompt_id, _ in pool.keys), **figures)


def summarise(records: Sequence[Curves]) -> SelectionSummary:
    """Returns means over the splits of every figure, and of its paired difference from `random`."""
    labels = [f"{learning} {selection}" for learning in LEARNING for selection in SELECTIONS]
    return SelectionSummary(
        seeds=len(records),
        curves={label: [_means(records, label, number) for number in range(ROUNDS + 1)] for label in labels},
        differences={
            label: [_means(records, label, number, f"{label.split()[0]} random") for number in range(1, ROUNDS + 1)]
            for label in labels
            if not label.endswith("random")
        },
    )


def _means(records: Sequence[Curves], label: str, number: int, reference: str | None = None) -> PointMeans:
    """Returns the means of a point over splits, or of its difference from the reference's point."""
    points = [record[label][number] for record in records]
    others = [None if reference is None else record[reference][number] for record in records]

    def less(point: RewardPoint, other: RewardPoint | None, name: str) -> float | None:
        value, base = getattr(point, name), 0.0 if other is None else getattr(other, name)
        return None if value is None or base is None else value - base

    means = {name: average(less(*pair, name) for pair in zip(points, others, strict=True)) for name in ERRORS}
    return PointMeans(annotations=sum(point.annotations for point in points) / len(points), **means)


def format_table(summary: SelectionSummary) -> str:
    """Formats a row per way of learning and choosing, number of annotations and figure."""
    rows = []
    for label, points in summary.differences.items():
        curves = [summary.curves[f"{label.split()[0]} random"], summary.curves[label]]
        for number, difference in enumerate(points, 1):
            for name in ERRORS:
                estimate, means = getattr(difference, name), [getattr(curve[number], name) for curve in curves]
                if estimate is not None:
                    shown = [f"{mean.value:.4f}" for mean in means]
                    count = f"{difference.annotations:.0f}"
                    rows.append((label, count, name.replace("_", " "), *shown, show_estimate(estimate, "+.4f")))
    heads = ["learning, selection", "annotations", "held-out figure", "random", "this", "difference"]
    before = summary.curves["refit random"][0]
    note = f"means over {summary.seeds} splits; before, with {before.annotations:.0f} annotations: "
    note += f"squared error {show_estimate(before.squared_error, '.4f')}"
    return f"{pd.DataFrame(rows, columns=heads).to_string(index=False)}\n{note}"


def main(
    prompts: Annotated[Path, typer.Argument(help="Folder of prompts.")],
    candidates: Annotated[Path, typer.Argument(help="Folder of candidates.")],
    annotations: Annotated[Path, typer.Argument(help="Folder of annotations.")],
    out: Out,
    seeds: Annotated[int, typer.Option(min=1, help="Splits of the photographs.")] = 10,
    portion: Annotated[float, typer.Option(min=0.01, max=0.33, help="Share annotated in each of three rounds.")] = 0.2,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Test whether active choice pays: rewards from equal numbers of annotations, by uncertainty or at random."""
    resolved = resolve_config(config, overrides)
    save_config(resolved, out)
    data, truth = load_annotated(prompts, candidates, annotations)
    summary = study_selection(data, truth, resolved.reward, out, seeds=seeds, portion=portion)
    print(format_table(summary) + ("" if truth is None else "; all annotators simulated"))


if __name__ == "__main__":
    run_as_program(main)
