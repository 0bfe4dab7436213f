"""Measures learned rewards on photographs never annotated: `python -m benchmarks.probes.reward_figures --out OUT`.

It paints and annotates prompts of the demo's photographs, trains a reward for each backbone on those to learn from, and
prints its figures on those held out. Every stage is the command that a user would type. Run it again whenever the base
model or the annotators change. Annotators are simulated.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from rlhf.commands.cli import app
from rlhf.config.config_files import find_run_file
from rlhf.config.devices import resolve_device
from rlhf.data.annotated_images import join_annotations
from rlhf.data.annotators import load_annotations, noiseless_scores
from rlhf.data.candidate_table import CandidateTable
from rlhf.data.normalisation import load_normalisation
from rlhf.data.photographs import HELD_OUT, TO_LEARN_FROM
from rlhf.data.prompts import load_prompts
from rlhf.reports.intervals import estimate_figure, estimate_share, rank_correlation
from rlhf.rewards.open_reward import open_reward


def run(command: str, *arguments: object, settings: list[str]) -> None:
    """Runs a command of the package in this process."""
    options = ["--config", str(find_run_file("demo")), *(word for setting in settings for word in ("--set", setting))]
    app([command, *map(str, arguments), *options], standalone_mode=False)


def annotate(photographs: Path, out: Path, settings: list[str]) -> None:
    """Makes prompts, candidates and simulated annotations in `out`; what is there stays."""
    if (out / "annotations" / "annotations.parquet").is_file():
        return
    run("prompts", "--images", photographs, "--split", "train", "--out", out / "prompts", settings=settings)
    run("candidates", "--prompts", out / "prompts", "--out", out / "candidates", settings=settings)
    annotations = ("--prompts", out / "prompts", "--out", out / "annotations")
    run("annotate", out / "candidates", "--simulated", *annotations, settings=settings)


def within(values: np.ndarray, prompts: list[str]) -> np.ndarray:
    """Returns values [N] less their prompt's mean."""
    rows = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows[prompt].append(row)
    left = values.copy()
    for own in rows.values():
        left[own] -= values[own].mean()
    return left


def correlation(pairs: np.ndarray) -> float:
    """Returns Pearson's r of two columns [N, 2]."""
    return float(np.corrcoef(pairs.T)[0, 1])


def order(first: np.ndarray, second: np.ndarray, groups: list[str]) -> tuple[np.ndarray, list[int]]:
    """Returns for the pairs of a prompt's images whether both columns order them alike (ties of `second` left out)."""
    rows = defaultdict(list)
    for row, group in enumerate(groups):
        rows[group].append(row)
    pairs = [(i, j) for own in rows.values() for n, i in enumerate(own) for j in own[:n] if second[i] != second[j]]
    alike = [0.5 if first[i] == first[j] else float((first[i] > first[j]) == (second[i] > second[j])) for i, j in pairs]
    return np.array(alike), [i for i, _ in pairs]


def measure(reward: Path, data: Path) -> dict[str, object]:
    """Returns the figures of a reward folder on annotated prompts, with 95 % intervals over photographs."""
    prompts = {p.prompt_id: p for p in load_prompts(data / "prompts")}
    images = CandidateTable(data / "candidates", prompts)
    rows = load_annotations(data / "annotations")
    joined = join_annotations(prompts, images, rows, load_normalisation(reward))
    truth = noiseless_scores(prompts, images, rows)
    shown = joined.pictures.show(joined.keys)
    scored = open_reward(reward, resolve_device("cpu")).score(*shown, [""] * len(joined.keys))
    assert scored.uncertainty is not None
    assert scored.width is not None
    scores, found = joined.scores.numpy(), scored.reward.double().numpy()
    keys = sorted(set(joined.keys))
    first = [joined.keys.index(key) for key in keys]
    ids, photographs = [name for name, _ in keys], [prompts[name].photograph for name, _ in keys]
    own = {key: [i for i, other in enumerate(joined.keys) if other == key] for key in keys}
    one, other = (np.array([scores[own[key][n]] for key in keys]) for n in (0, 1))
    by_reward, rows_of = order(found[first], one, ids)
    by_other, rows_of_other = order(other, one, ids)
    errors = np.abs(scores - found)
    columns = np.stack([within(found[first], ids), within(truth[first], ids)], 1)
    uncertain = np.stack([errors, scored.uncertainty.numpy()], 1)
    return {
        "images": len(keys),
        "photographs": len(set(photographs)),
        "correlation within a prompt": asdict(estimate_figure(columns, photographs, statistic=correlation)),
        "sd within a prompt: noiseless, reward": columns.std(0)[::-1].round(3).tolist(),
        "pairs as one annotator": asdict(estimate_share(by_reward, [photographs[i] for i in rows_of])),
        "pairs, another annotator": asdict(estimate_share(by_other, [photographs[i] for i in rows_of_other])),
        "rank correlation of error and uncertainty": asdict(
            estimate_figure(uncertain, joined.photographs, statistic=rank_correlation)
        ),
        "coverage": asdict(estimate_share((errors <= scored.width.numpy()).astype(float), joined.photographs)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="reward_figures", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbones", nargs="+", default=["small", "efficientnet-lite0"])
    parser.add_argument("--crops", type=int, default=6, help="prompts of a photograph to learn from")
    parser.add_argument("--held-out-crops", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], help="reward settings, as of `rlhf reward`"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    samples = f"candidates.samples_per_prompt={options.samples}"
    for photographs, crops in ((TO_LEARN_FROM, options.crops), (HELD_OUT, options.held_out_crops)):
        annotate(photographs, options.out / photographs.name, [f"prompts.crops_per_photograph={crops}", samples])
    train = options.out / TO_LEARN_FROM.name
    for backbone in options.backbones:
        reward = options.out / f"reward-{backbone}"
        parts = [train / name for name in ("prompts", "candidates", "annotations")]
        run("reward", *parts, "--out", reward, settings=[f"reward.backbone={backbone}", *options.settings])
        figures = measure(reward, options.out / HELD_OUT.name)
        print(json.dumps({backbone: figures}, indent=1), flush=True)


if __name__ == "__main__":
    main()
