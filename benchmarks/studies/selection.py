"""Whether active choice pays: rewards of equally many annotations, chosen by uncertainty or at random, compared.

Each split of the photographs begins with a reward of a random portion of the prompts. Then two further
portions are annotated, as `rlhf rounds` does: each is chosen by the reward so far or at random, and the
reward is fitted anew to all annotations, or takes the new ones in. Photographs held out from all of it judge.
The same candidates serve all rounds, and their scores one normalisation, so that selection alone differs.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.studies.annotated import load_annotated
from benchmarks.studies.command_line import run_as_program
from benchmarks.studies.selection_figure import draw_errors
from rlhf.commands.options import Config, Out, Overrides, resolve_config, save_config
from rlhf.config.run_config import RewardConfig
from rlhf.data.annotated_images import AnnotatedImages, distinct_images, split_photographs
from rlhf.evaluation.tasks.resplits import average, run_resplits
from rlhf.reports.intervals import show_estimate
from rlhf.rewards.learned.bound import update_ridge
from rlhf.rewards.learned.feature_training import with_descriptions
from rlhf.rewards.learned.prompt_choice import order_by_uncertainty, order_randomly, take_prompts
from rlhf.rewards.learned.reward_figures import pair_accuracy
from rlhf.rewards.learned.reward_memory import RewardMemory, described, no_prompts, rows_to_add
from rlhf.rewards.learned.reward_model import RewardModel
from rlhf.rewards.learned.reward_training import features_of, fit_reward
from rlhf.storage.atomic_files import atomic_write_json, finite

SELECTIONS = ("uncertain", "random")
"""As `rlhf annotate --select` has them."""
LEARNING = ("refit", "update")
"""Fitted anew to all annotations; features stay, V and the head take the new ones in."""
HELD_OUT = 0.3
"""Share of the photographs that judge."""
ROUNDS = 2
"""Further portions after the first."""
Record = dict[str, list[dict[str, Any]]]
"""Of a split, by learning and selection: figures after each portion."""


def study_selection(
    data: AnnotatedImages,
    noiseless: torch.Tensor | None,
    config: RewardConfig,
    out: Path,
    *,
    seeds: int,
    portion: float,
) -> dict[str, Any]:
    """Compare the selections on `seeds` splits of the photographs; each split is a file, so a run goes on.

    `noiseless` is what the annotators' scores would be without noise, [N], where they are simulated;
    `portion` the share of the candidates that are not held out which each round annotates.
    Writes `resplit-*.json`, `selection_study.png` and, last, `selection_study.json`, which is returned.
    Intervals are of a bootstrap over splits, which share their photographs: they tell what another split
    would show, not other photographs. Raises UserError where `out` holds a study of other settings.
    """
    settings = {"config": config.model_dump(mode="json"), "portion": portion, "rows": len(data.keys)}
    data = with_descriptions(data, config, 0)
    if data.described is not None:
        # Nothing looks at the pictures any more; every part would copy its own.
        data = replace(data, images=data.images[:, :0], masks=data.masks[:, :0])

    def measure(seed: int) -> dict[str, Any]:
        return compare_selections(data, noiseless, config, seed, portion)

    records = run_resplits(out, settings, seeds, measure, stage="study selection")
    summary = summarise(records)
    draw_errors(summary, out / "selection_study.png")
    atomic_write_json(out / "selection_study.json", summary)
    return finite(summary)


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A reward, and what it was taught."""

    model: RewardModel
    memory: RewardMemory
    prompts: frozenset[str]


def compare_selections(
    data: AnnotatedImages, noiseless: torch.Tensor | None, config: RewardConfig, seed: int, portion: float
) -> Record:
    """One split: by learning and selection the figures after each portion, the first of which all have in common."""
    pool_photographs, judges = split_photographs(data.photographs, (1 - HELD_OUT, HELD_OUT), seed)
    pool, held_out = data.of(pool_photographs), data.of(judges)
    truth = None if noiseless is None else noiseless[[name in judges for name in data.photographs]]
    counts = Counter(prompt_id for prompt_id, _ in set(pool.keys))
    limit = round(portion * sum(counts.values()))
    first = learn_anew(pool, take_prompts(order_randomly(list(counts), seed=seed), counts, limit), config, seed)
    figures = {}
    for learning in LEARNING:
        for selection in SELECTIONS:
            learner, curve = first, [judge(first, pool, held_out, truth)]
            for number in range(1, ROUNDS + 1):
                left = {name: count for name, count in counts.items() if name not in learner.prompts}
                order = order_prompts(learner, pool, list(left), selection, seed + 1000 * number)
                chosen = take_prompts(order, left, limit)
                if learning == "refit":
                    learner = learn_anew(pool, [*learner.prompts, *chosen], config, seed)
                else:
                    learner = take_in(learner, pool, chosen)
                curve.append(judge(learner, pool, held_out, truth))
            figures[f"{learning} {selection}"] = curve
    return figures


def learn_anew(pool: AnnotatedImages, prompts: list[str], config: RewardConfig, seed: int) -> Learner:
    """The reward of all annotations of some prompts, as `train_reward` fits it."""
    data = rows_of(pool, prompts)
    a, b, c, d = (data.of(part) for part in split_photographs(data.photographs, config.parts, seed))
    fitted = fit_reward(a, b, c, config, seed)
    seen = no_prompts(config.feature_dim + 1).added(fitted.corrected_on)
    report = described(features_of(fitted.model.network, d), d)
    memory = RewardMemory(seen=seen, calibration=fitted.calibrated_on, report=report, seen_ids=frozenset())
    return Learner(model=fitted.model, memory=memory, prompts=frozenset(prompts))


def take_in(learner: Learner, pool: AnnotatedImages, prompts: list[str]) -> Learner:
    """The learner with further prompts, as `update_reward` takes them in."""
    data, model = rows_of(pool, prompts), learner.model
    effects = model.calibration.prompt_effects
    assert effects is not None, "`fit_reward` measures them"
    memory, learnt = learner.memory.adding(described(features_of(model.network, data), data), [])
    head = update_ridge(model.head, *rows_to_add(learnt, learner.memory.seen, effects)) if learnt.keys else model.head
    return Learner(model=replace(model, head=head), memory=memory, prompts=learner.prompts.union(prompts))


def order_prompts(learner: Learner, pool: AnnotatedImages, prompts: list[str], selection: str, seed: int) -> list[str]:
    """The prompts as `rlhf annotate --select` orders them."""
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
    """The annotations of some prompts."""
    names = set(prompts)
    return data.rows([row for row, (prompt_id, _) in enumerate(data.keys) if prompt_id in names])


def judge(
    learner: Learner, pool: AnnotatedImages, held_out: AnnotatedImages, truth: torch.Tensor | None
) -> dict[str, Any]:
    """How many annotations were given, and how the reward errs on held-out ones; `truth` [N] as `noiseless`."""
    reward = learner.model.head.reward(features_of(learner.model.network, held_out))
    figures: dict[str, Any] = {"annotations": sum(prompt_id in learner.prompts for prompt_id, _ in pool.keys)}
    for name, scores in (("", held_out.scores.double()), ("_noiseless", truth)):
        if scores is not None:
            figures[f"squared_error{name}"] = float((scores - reward).square().mean())
            figures[f"absolute_error{name}"] = float((scores - reward).abs().mean())
            figures[f"pair_accuracy{name}"] = pair_accuracy(reward.numpy(), scores.numpy(), held_out.keys)
    return figures


def summarise(records: list[Record]) -> dict[str, Any]:
    """Means over the splits of every figure and of its paired difference from `random`, with intervals."""
    names = [name for name in records[0]["refit random"][0] if name != "annotations"]
    curves, differences = {}, {}
    for learning in LEARNING:
        for selection in SELECTIONS:
            label, reference = f"{learning} {selection}", f"{learning} random"
            curves[label] = [
                _mean_annotations(records, label, number)
                | {name: average(r[label][number][name] for r in records) for name in names}
                for number in range(ROUNDS + 1)
            ]
            if label != reference:
                differences[label] = [
                    _mean_annotations(records, label, number)
                    | {name: average(_difference(r, label, reference, number, name) for r in records) for name in names}
                    for number in range(1, ROUNDS + 1)
                ]
    return {"seeds": len(records), "curves": curves, "differences": differences}


def _mean_annotations(records: list[Record], label: str, number: int) -> dict[str, float]:
    given = [record[label][number]["annotations"] for record in records]
    return {"annotations": sum(given) / len(given)}


def _difference(record: Record, label: str, reference: str, number: int, name: str) -> float | None:
    value, random = record[label][number][name], record[reference][number][name]
    return None if value is None or random is None else value - random


def format_table(summary: Mapping[str, Any]) -> str:
    """The summary for the terminal: a line per way of learning and choosing, number of annotations and figure."""
    lines = [
        f"{'learning, selection':<25}{'annotations':>12}  {'held-out figure':<26}{'random':>8}{'this':>8}  difference"
    ]
    for label, points in summary["differences"].items():
        reference = summary["curves"][f"{label.split()[0]} random"]
        for number, differences in enumerate(points, 1):
            for name in (name for name in differences if name != "annotations"):
                means = [curve[number][name]["value"] for curve in (reference, summary["curves"][label])]
                lines.append(
                    f"{label:<25}{differences['annotations']:>12.0f}  {name.replace('_', ' '):<26}"
                    f"{means[0]:>8.4f}{means[1]:>8.4f}  {show_estimate(differences[name], '+.4f')}"
                )
    before = summary["curves"]["refit random"][0]
    note = f"means over {summary['seeds']} splits; before, with {before['annotations']:.0f} annotations: "
    return "\n".join([*lines, note + f"squared error {before['squared_error']['value']:.4f}"])


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
    """Does active choice pay? Rewards of equally many annotations, chosen by uncertainty or at random."""
    resolved = resolve_config(config, overrides)
    save_config(resolved, out)
    data, truth = load_annotated(prompts, candidates, annotations)
    summary = study_selection(data, truth, resolved.reward, out, seeds=seeds, portion=portion)
    print(format_table(summary) + ("" if truth is None else "; all annotators simulated"))


if __name__ == "__main__":
    run_as_program(main)
