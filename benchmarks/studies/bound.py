"""Compares several kinds of uncertainty of the reward on the same splits of the photographs.

Each kind gets its own conformal multiplier on part C and is judged on part D. All kinds therefore state the same
coverage; they differ in width and in their knowledge of which rewards are wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from pydantic import JsonValue

from benchmarks.studies.annotated import load_annotated
from benchmarks.studies.command_line import run_as_program
from rlhf.commands.options import Config, Out, Overrides, resolve_config, save_config
from rlhf.config.run_config import RewardConfig
from rlhf.data.annotated_images import AnnotatedImages, distinct_images, split_photographs
from rlhf.evaluation.tasks.resplits import average, run_resplits
from rlhf.reports.intervals import Estimate, estimate_share, rank_correlation, show_estimate
from rlhf.reports.pages import show
from rlhf.rewards.learned.bound import conformal_multiplier
from rlhf.rewards.learned.feature_training import describe_rows, with_descriptions
from rlhf.rewards.learned.reward_model import RewardModel
from rlhf.rewards.learned.reward_training import features_of, fit_reward
from rlhf.storage.atomic_files import atomic_write_json

KINDS = ("proper norm", "released norm", "ensemble", "dropout", "constant")
"""sqrt(z' V^-1 z); ||V^-1 z||; spread of an ensemble of rewards; spread over dropout masks; a constant."""
COVERAGES = (0.9, 0.95)
DROPOUT_PASSES = 20
LEAST = 1e-3
"""Added to spreads, since networks that agree by chance can still be wrong."""
Figures = dict[str, float | None]
"""Figures of one kind on one split by name: `error`, `aurc`, `coverage_0.9` and so on; None for no value."""


@dataclass(frozen=True, kw_only=True)
class SplitFigures:
    """Figures of one split."""

    kinds: dict[str, Figures]
    ceiling: float | None
    """Rank correlation with the noisy errors that the reward's true error would reach."""


@dataclass(frozen=True, kw_only=True)
class BoundSummary:
    """Summary of all splits."""

    resplits: int
    kinds: dict[str, dict[str, Estimate | float | None]]
    """Means over splits by kind and figure; a plain number is a share of splits."""
    ceiling: Estimate | None


def study_bound(
    data: AnnotatedImages,
    noiseless: torch.Tensor | None,
    config: RewardConfig,
    out: Path,
    *,
    resplits: int,
    ensemble: int = 5,
) -> BoundSummary:
    """Judges all kinds on `resplits` splits of the photographs; each split is a file, so a study can be resumed.

    `noiseless` are the simulated annotators' scores without noise, [N]. Writes `resplit-*.json` and, last,
    `bound_study.json`. Raises UserError if `out` holds a study with other settings.
    """
    settings: dict[str, JsonValue] = {
        "config": config.model_dump(mode="json"),
        "ensemble": ensemble,
        "rows": len(data.keys),
    }
    data = with_descriptions(data, config, 0)
    records = run_resplits(
        out,
        settings,
        resplits,
        lambda seed: judge_split(data, noiseless, config, seed, ensemble),
        SplitFigures,
        stage="study bound",
    )
    summary = BoundSummary(
        resplits=resplits,
        kinds={kind: _summarise([record.kinds[kind] for record in records]) for kind in KINDS},
        ceiling=average(record.ceiling for record in records),
    )
    atomic_write_json(out / "bound_study.json", asdict(summary))
    return summary


def judge_split(
    data: AnnotatedImages, noiseless: torch.Tensor | None, config: RewardConfig, seed: int, ensemble: int
) -> SplitFigures:
    """Fits the reward on one split and judges all kinds."""
    parts = split_photographs(data.photographs, config.parts, seed)
    a, b, c, d = (data.of(part) for part in parts)
    models = [fit_reward(a, b, c, config, 1000 * seed + member).model for member in range(ensemble)]
    truth = None if noiseless is None else noiseless[[name in parts[3] for name in data.photographs]]
    scored_c, scored_d = _score(models, c), _score(models, d)
    figures = {}
    for kind in KINDS:
        (reward_c, width_c), (reward_d, width_d) = scored_c[kind], scored_d[kind]
        multipliers = {level: conformal_multiplier(c.scores - reward_c, width_c, level) for level in COVERAGES}
        figures[kind] = judge_uncertainty(d, reward_d, width_d, multipliers, truth)
    reward = scored_d["proper norm"][0]
    ceiling = None if truth is None else _correlation((d.scores - reward).abs(), (truth - reward).abs())
    return SplitFigures(kinds=figures, ceiling=ceiling)


def _score(models: Sequence[RewardModel], data: AnnotatedImages) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Returns reward and uncertainty by kind, float64 [N] each."""
    z = [features_of(model.network, data) for model in models]
    rewards = torch.stack([model.head.reward(features) for model, features in zip(models, z, strict=True)])
    head = models[0].head
    return {
        "proper norm": (rewards[0], head.uncertainty(z[0])),
        "released norm": (rewards[0], head.released_norm(z[0])),
        "ensemble": (rewards.mean(0), rewards.std(0) + LEAST),
        "dropout": (rewards[0], _dropout_spread(models[0], data) + LEAST),
        "constant": (rewards[0], torch.ones_like(rewards[0])),
    }


@torch.no_grad()
def _dropout_spread(model: RewardModel, data: AnnotatedImages) -> torch.Tensor:
    """Returns the standard deviation [N] of the reward over dropout masks (Gal and Ghahramani 2016)."""
    first_rows, numbers = distinct_images(data)
    described = describe_rows(model.network, data, first_rows)
    torch.manual_seed(0)
    dropouts = [m for m in model.network.modules() if isinstance(m, torch.nn.Dropout)]
    for module in dropouts:
        module.train()
    passes = [model.head.reward(model.network.features_of(described)) for _ in range(DROPOUT_PASSES)]
    for module in dropouts:
        module.eval()
    return torch.stack(passes).std(0)[numbers]


def judge_uncertainty(
    data: AnnotatedImages,
    reward: torch.Tensor,
    uncertainty: torch.Tensor,
    multipliers: dict[float, float],
    truth: torch.Tensor | None,
) -> Figures:
    """Returns error, coverage and width by level, and how well the uncertainty ranks the errors.

    `is_nominal_inside_LEVEL` is 1 if the interval of the coverage holds the nominal one, and None without an interval.
    """
    errors = (data.scores.double() - reward).abs()
    figures: Figures = {
        "error": float(errors.mean()),
        "rank_correlation": _correlation(errors, uncertainty),
        "rank_correlation_noiseless": None if truth is None else _correlation((truth - reward).abs(), uncertainty),
        "aurc": risk_coverage_area(errors.numpy(), uncertainty.numpy()),
    }
    for level, multiplier in multipliers.items():
        covered = (errors <= multiplier * uncertainty).double().numpy()
        estimate = estimate_share(covered, data.photographs)
        figures[f"coverage_{level:g}"] = estimate.value
        is_inside = float(estimate.low <= level <= estimate.high)
        figures[f"is_nominal_inside_{level:g}"] = is_inside if math.isfinite(estimate.low) else None
        figures[f"width_{level:g}"] = float(2 * multiplier * uncertainty.mean())
    return figures


def _correlation(errors: torch.Tensor, uncertainty: torch.Tensor) -> float:
    return rank_correlation(np.stack([errors.numpy(), uncertainty.numpy()], axis=1))


def risk_coverage_area(errors: np.ndarray, uncertainty: np.ndarray) -> float:
    """Returns the mean, over n, of the mean error of the n most certain rewards; ties share ranks.

    It is the area under the risk-coverage curve of Geifman and El-Yaniv (2017).
    """
    order = np.argsort(uncertainty, kind="stable")
    _, starts, counts = np.unique(uncertainty[order], return_index=True, return_counts=True)
    ranked = errors[order].astype(float)
    for start, count in zip(starts, counts, strict=True):
        ranked[start : start + count] = ranked[start : start + count].mean()
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1)).mean())


def _summarise(records: Sequence[Figures]) -> dict[str, Estimate | float | None]:
    """Returns means over the splits, and the share of splits whose interval holds the nominal coverage."""
    summary: dict[str, Estimate | float | None] = {}
    for name in records[0]:
        known = [value for record in records if (value := record[name]) is not None]
        share = float(np.mean(known)) if known else None
        summary[name] = share if name.startswith("is_") else average(known)
    return summary


def _show_figure(figure: Estimate | float | None, spec: str) -> str:
    """Formats an estimate with its interval, or a share; a dash if there is neither."""
    return show(figure, spec) if isinstance(figure, float) else show_estimate(figure, spec)


def format_table(summary: BoundSummary) -> str:
    """Formats a table with a row per kind."""
    columns = {"coverage 90": "coverage_0.9", "coverage 95": "coverage_0.95", "width 90": "width_0.9", "AURC": "aurc"}
    columns |= {"rho noisy": "rank_correlation", "rho noiseless": "rank_correlation_noiseless"}
    table = pd.DataFrame.from_dict(
        {
            kind: {head: _show_figure(figures[name], ".3f") for head, name in columns.items()}
            | {"inside": _show_figure(figures["is_nominal_inside_0.9"], ".0%")}
            for kind, figures in summary.kinds.items()
        },
        orient="index",
    )
    ceiling = show_estimate(summary.ceiling, ".3f")
    note = f"means over {summary.resplits} splits; an uncertainty that knew each true error: rho noisy {ceiling}"
    return f"{table.to_string()}\n{note}"


def main(
    prompts: Annotated[Path, typer.Argument(help="Folder of prompts.")],
    candidates: Annotated[Path, typer.Argument(help="Folder of candidates.")],
    annotations: Annotated[Path, typer.Argument(help="Folder of annotations.")],
    out: Out,
    resplits: Annotated[int, typer.Option(min=1, help="Splits of the photographs.")] = 20,
    ensemble: Annotated[int, typer.Option(min=2, help="Networks of the deep ensemble.")] = 5,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Compare kinds of uncertainty on the same splits: coverage, width, and how well they rank errors."""
    resolved = resolve_config(config, overrides)
    save_config(resolved, out)
    data, truth = load_annotated(prompts, candidates, annotations)
    print(format_table(study_bound(data, truth, resolved.reward, out, resplits=resplits, ensemble=ensemble)))


if __name__ == "__main__":
    run_as_program(main)
