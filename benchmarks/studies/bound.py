"""How far uncertainties can be trusted: several kinds compared on the same splits of the photographs.

Each kind is given its own conformal multiplier on part C and is judged on part D, so that all state the same
coverage and differ in width and in whether they know which rewards are wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.studies.annotated import load_annotated
from benchmarks.studies.command_line import run_as_program
from rlhf.commands.options import Config, Out, Overrides, resolve_config, save_config
from rlhf.config.run_config import RewardConfig
from rlhf.data.annotated_images import AnnotatedImages, distinct_images, split_photographs
from rlhf.evaluation.tasks.resplits import average, run_resplits
from rlhf.reports.intervals import cluster_bootstrap, rank_correlation, show_estimate
from rlhf.reports.pages import show
from rlhf.rewards.learned.bound import conformal_multiplier
from rlhf.rewards.learned.feature_training import describe_rows, with_descriptions
from rlhf.rewards.learned.reward_model import RewardModel
from rlhf.rewards.learned.reward_training import features_of, fit_reward
from rlhf.storage.atomic_files import atomic_write_json, finite

KINDS = ("proper norm", "released norm", "ensemble", "dropout", "constant")
"""sqrt(z' V^-1 z); ||V^-1 z||; spread of 5 rewards; spread over dropout masks; no uncertainty at all."""
COVERAGES = (0.9, 0.95)
DROPOUT_PASSES = 20
LEAST = 1e-3
"""Added to spreads: where five networks agree by chance the error is not 0."""


def study_bound(
    data: AnnotatedImages,
    noiseless: torch.Tensor | None,
    config: RewardConfig,
    out: Path,
    *,
    resplits: int,
    ensemble: int = 5,
) -> dict[str, Any]:
    """Judge all kinds on `resplits` splits of the photographs; each split is a file, so a run goes on.

    `noiseless` is what the annotators' scores would be without noise, [N], where they are simulated.
    Writes `resplit-*.json` and, last, `bound_study.json`, which is returned. Raises UserError where `out`
    holds a study of other settings.
    """
    settings = {"config": config.model_dump(mode="json"), "ensemble": ensemble, "rows": len(data.keys)}
    data = with_descriptions(data, config, 0)
    records = run_resplits(
        out, settings, resplits, lambda seed: judge_split(data, noiseless, config, seed, ensemble), stage="study bound"
    )
    summary = {"resplits": resplits, "kinds": {kind: _summarise([r[kind] for r in records]) for kind in KINDS}}
    summary["ceiling"] = average(r["ceiling"] for r in records)
    atomic_write_json(out / "bound_study.json", summary)
    return finite(summary)


def judge_split(
    data: AnnotatedImages, noiseless: torch.Tensor | None, config: RewardConfig, seed: int, ensemble: int
) -> dict[str, Any]:
    """One split: figures per kind, and the rank correlation that the reward's true error would reach."""
    parts = split_photographs(data.photographs, config.parts, seed)
    a, b, c, d = (data.of(part) for part in parts)
    models = [fit_reward(a, b, c, config, 1000 * seed + member).model for member in range(ensemble)]
    truth = None if noiseless is None else noiseless[[name in parts[3] for name in data.photographs]]
    scored_c, scored_d = _score(models, c), _score(models, d)
    figures: dict[str, Any] = {}
    for kind in KINDS:
        (reward_c, width_c), (reward_d, width_d) = scored_c[kind], scored_d[kind]
        multipliers = {level: conformal_multiplier(c.scores - reward_c, width_c, level) for level in COVERAGES}
        figures[kind] = judge(d, reward_d, width_d, multipliers, truth)
    reward = scored_d["proper norm"][0]
    figures["ceiling"] = None if truth is None else _correlation((d.scores - reward).abs(), (truth - reward).abs())
    return figures


def _score(models: Sequence[RewardModel], data: AnnotatedImages) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Reward and uncertainty by kind, each float64 [N]."""
    z = [features_of(model.network, data) for model in models]
    rewards = torch.stack([model.head.reward(features) for model, features in zip(models, z, strict=True)])
    head = models[0].head
    return {
        "proper norm": (rewards[0], head.uncertainty(z[0])),
        "released norm": (rewards[0], head.prefpaint_norm(z[0])),
        "ensemble": (rewards.mean(0), rewards.std(0) + LEAST),
        "dropout": (rewards[0], _dropout_spread(models[0], data) + LEAST),
        "constant": (rewards[0], torch.ones_like(rewards[0])),
    }


@torch.no_grad()
def _dropout_spread(model: RewardModel, data: AnnotatedImages) -> torch.Tensor:
    """Standard deviation of the reward over dropout masks (Gal and Ghahramani, 2016), [N]."""
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


def judge(
    data: AnnotatedImages,
    reward: torch.Tensor,
    uncertainty: torch.Tensor,
    multipliers: dict[float, float],
    truth: torch.Tensor | None,
) -> dict[str, Any]:
    """Coverage (and whether its interval holds the nominal one), width, and what the uncertainty knows of errors."""
    errors = (data.scores.double() - reward).abs()
    figures: dict[str, Any] = {
        "error": float(errors.mean()),
        "rank_correlation": _correlation(errors, uncertainty),
        "rank_correlation_noiseless": None if truth is None else _correlation((truth - reward).abs(), uncertainty),
        "aurc": risk_coverage_area(errors.numpy(), uncertainty.numpy()),
    }
    for level, multiplier in multipliers.items():
        covered = (errors <= multiplier * uncertainty).double().numpy()
        estimate = cluster_bootstrap(covered, data.photographs)
        figures[f"coverage_{level:g}"] = asdict(estimate)
        is_inside = bool(estimate.low <= level <= estimate.high)
        figures[f"is_nominal_inside_{level:g}"] = is_inside if math.isfinite(estimate.low) else None
        figures[f"width_{level:g}"] = float(2 * multiplier * uncertainty.mean())
    return figures


def _correlation(errors: torch.Tensor, uncertainty: torch.Tensor) -> float:
    return rank_correlation(np.stack([errors.numpy(), uncertainty.numpy()], axis=1))


def risk_coverage_area(errors: np.ndarray, uncertainty: np.ndarray) -> float:
    """Mean over n of the mean error of the n most certain rewards (Geifman and El-Yaniv, 2017); ties share ranks."""
    order = np.argsort(uncertainty, kind="stable")
    _, starts, counts = np.unique(uncertainty[order], return_index=True, return_counts=True)
    ranked = errors[order].astype(float)
    for start, count in zip(starts, counts, strict=True):
        ranked[start : start + count] = ranked[start : start + count].mean()
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1)).mean())


def _summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the splits with intervals, and the share of splits whose interval holds the nominal coverage."""
    summary: dict[str, Any] = {}
    for name, value in records[0].items():
        values = [record[name]["value"] if isinstance(value, dict) else record[name] for record in records]
        known = [value for value in values if value is not None]
        share = float(np.mean(known)) if known else None
        summary[name] = share if name.startswith("is_") else average(values)
    return summary


def format_table(summary: dict[str, Any]) -> str:
    """The summary as a table for the terminal, a line per kind."""
    head = f"{'uncertainty':<15}{'coverage 90':>22}{'inside':>8}{'coverage 95':>22}{'width 90':>10}"
    lines = [head + f"{'rho noisy':>22}{'rho noiseless':>22}{'AURC':>8}"]
    for kind, figures in summary["kinds"].items():
        cells = [
            f"{kind:<15}",
            f"{show_estimate(figures['coverage_0.9'], '.3f'):>22}",
            f"{show(figures['is_nominal_inside_0.9'], '.0%'):>8}",
            f"{show_estimate(figures['coverage_0.95'], '.3f'):>22}",
            f"{figures['width_0.9']['value']:>10.3f}",
            f"{show_estimate(figures['rank_correlation'], '.3f'):>22}",
            f"{show_estimate(figures['rank_correlation_noiseless'], '.3f'):>22}",
            f"{figures['aurc']['value']:>8.3f}",
        ]
        lines.append("".join(cells))
    ceiling = show_estimate(summary["ceiling"], ".3f")
    note = f"means over {summary['resplits']} splits; an uncertainty that knew each true error: rho noisy {ceiling}"
    return "\n".join([*lines, note])


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
    """Compare kinds of uncertainty on the same splits: coverage, width, and what they know of errors."""
    resolved = resolve_config(config, overrides)
    save_config(resolved, out)
    data, truth = load_annotated(prompts, candidates, annotations)
    print(format_table(study_bound(data, truth, resolved.reward, out, resplits=resplits, ensemble=ensemble)))


if __name__ == "__main__":
    run_as_program(main)
