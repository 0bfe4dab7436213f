"""A training as users start it, update by update: phases, idle roles, images a second; sync against overlapped."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import Figures, spread
from rlhf.config_files import load_config
from rlhf.demo import find_run_file
from rlhf.metrics_log import read_metrics

WARM_UP = 3
"""Updates that are not counted: processes are still starting."""
MODES = {"sync": 0, "overlapped": 1}


def measure(run: Path, updates: int) -> Figures:
    """`rlhf align` with the demo's settings on the prompts and reward of `run`, both modes in turn, twice."""
    lines: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for repetition in range(2):
        for mode, staleness in MODES.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "rlhf", "align", "--prompts", str(run / "prompts")]
                command += [
                    "--reward",
                    str(run / "reward"),
                    "--out",
                    f"{folder}/align",
                    "--config",
                    str(find_run_file("demo")),
                ]
                command += ["--set", f"align.updates={updates}", "--set", f"align.checkpoint_every={updates}"]
                command += ["--set", f"align.max_staleness={staleness}", "--set", f"seed={repetition}"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                lines[mode] += read_metrics(Path(folder) / "align")[WARM_UP:-1]
    align = load_config(find_run_file("demo"), ()).align
    images = align.prompts_per_update * align.samples_per_prompt
    return {mode: _summarise(found, images) for mode, found in lines.items()}


def _summarise(lines: list[dict[str, float]], images: int) -> Figures:
    """`no_model_share`: of an update, the time in which the average sampler was idle and the learner did not train.

    That is more than control takes: a sampler that waits for another is idle as well.
    """
    columns = {key: np.array([line[key] for line in lines]) for key in lines[0] if isinstance(lines[0][key], float)}
    busy = columns["rollout_s"] * (1 - columns["sampler_idle_share"])
    outside = columns["update_s"] - columns["rollout_s"] - columns["train_s"]
    return {
        "updates": len(lines),
        "images_per_s": spread(images / columns["update_s"]),
        "update_s": spread(columns["update_s"]),
        "rollout_share": spread(columns["rollout_s"] / columns["update_s"]),
        "train_share": spread(columns["train_s"] / columns["update_s"]),
        "outside_share": spread(outside / columns["update_s"]),
        "no_model_share": spread(1 - (busy + columns["train_s"]) / columns["update_s"]),
        "sampler_idle_share": spread(columns["sampler_idle_share"]),
        "scorer_idle_share": spread(columns["scorer_idle_share"]),
        "weights_sync_s": spread(columns["weights_sync_s"]),
    }
