"""Measures a training as users start it: phases, idle roles and images per second, synchronous and overlapped."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import Figures, spread
from rlhf.config.config_files import find_run_file, load_config
from rlhf.reports.metrics_log import read_metrics

WARM_UP = 3
"""Number of first updates that do not count, since processes are still starting."""
MODES = {"sync": 0, "overlapped": 1}


def measure(run: Path, updates: int) -> Figures:
    """Runs `rlhf align` with the demo's settings on the prompts and reward of `run`, both modes in turn, twice."""
    lines: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for repetition in range(2):
        for mode, staleness in MODES.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "rlhf", "align", "--prompts", str(run / "prompts")]
                command += ["--reward", str(run / "reward"), "--out", f"{folder}/align"]
                command += ["--config", str(find_run_file("demo"))]
                command += ["--set", f"align.updates={updates}", "--set", f"align.checkpoint_every={updates}"]
                command += ["--set", f"align.max_staleness={staleness}", "--set", f"seed={repetition}"]
                done = subprocess.run(command, check=False, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
                lines[mode] += read_metrics(Path(folder) / "align")[WARM_UP:-1]
    align = load_config(find_run_file("demo"), ()).align
    images = align.prompts_per_update * align.samples_per_prompt
    return {mode: summarise(found, images, in_turn=mode == "sync") for mode, found in lines.items()}


def summarise(lines: list[dict[str, float]], images: int, *, in_turn: bool) -> Figures:
    """Returns medians over updates; shares are those of an update's time, without checkpoints.

    If rollouts and training take turns, three more shares are known. `weights` lasts from publishing weights until the
    last sampler has proved them. `control` is the rest beside weights, rollouts, scoring and training. `no_model` is an
    upper bound on the time in which no model works: the average sampler is idle or loads weights, and the learner does
    not train.
    """
    columns = {key: np.array([line[key] for line in lines]) for key in lines[0] if isinstance(lines[0][key], float)}
    whole = columns["update_s"]
    collected, training = columns["rollout_s"] / whole, columns["train_s"] / whole
    busy = collected * (1 - columns["sampler_idle_share"])
    shares = {"rollouts": collected, "training": training, "samplers_idle": 1 - busy, "learner_idle": 1 - training}
    if in_turn:
        weights = columns["weights_sync_s"] / whole
        shares |= {"rollouts": collected - weights, "weights": weights, "control": 1 - collected - training}
        shares["no_model"] = 1 - (busy - weights) - training
    return {
        "updates": len(lines),
        "images_per_s": spread(images / whole),
        "update_s": spread(whole),
        "weights_sync_s": spread(columns["weights_sync_s"]),
        "scorers_idle_of_rollouts": spread(columns["scorer_idle_share"]),
        "shares": {name: spread(share) for name, share in shares.items()},
    }
