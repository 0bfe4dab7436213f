"""Training loop that can be killed at any moment and resumes to the same bits."""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_torch_save, atomic_write

Part = torch.nn.Module | torch.optim.Optimizer


@dataclass(frozen=True, kw_only=True)
class TrainingSchedule:
    """Length, learning rate and averaging of a stage."""

    until: int
    """Total number of updates when the call returns."""
    peak_lr: float
    """Learning rate after the warm-up."""
    warm_up: int = 200
    """Number of updates of linear warm-up, from the first update of a fresh optimizer."""
    decay_from: int | None = None
    """Update from which the learning rate falls, as a cosine, to 2 % at `decay_to`; None: it does not fall."""
    decay_to: int | None = None
    """Last update of the decay; None: `until`."""
    average: float = 0.9995
    """Decay of the EMA of the weights."""
    weight_decay: float = 0.01
    """Weight decay of AdamW; 0 if the scale of the weights matters."""
    save_every: int = 100
    """Number of updates between states on disk: the most that a kill loses."""
    log_every: int = 50
    """Number of updates between lines of the log."""

    def learning_rate(self, update: int, first: int) -> float:
        """Returns the learning rate of an update; the optimizer was fresh at update `first`."""
        rate = self.peak_lr * min(1.0, (update - first + 1) / self.warm_up)
        if self.decay_from is None or update < self.decay_from:
            return rate
        end = self.until if self.decay_to is None else self.decay_to
        progress = min(1.0, (update - self.decay_from) / max(1, end - self.decay_from))
        return rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def train_stage(
    module: torch.nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    schedule: TrainingSchedule,
    *,
    state_path: Path,
    log_path: Path,
    first: int = 0,
) -> torch.nn.Module:
    """Trains the parameters that require gradients with AdamW; returns the EMA of the weights.

    `loss_of` takes the number of updates done and is the only source of randomness, so a run that resumes from
    `state_path` ends with the bits of an uninterrupted one. The state is replaced as a whole every `save_every`
    updates; the log gets a JSON line (update, mean loss, learning rate, seconds per update, time) every `log_every`.
    Without a state, training starts from the module's weights, counted as update `first`.
    """
    averaged = copy.deepcopy(module).eval().requires_grad_(False)
    trained = [p for p in module.parameters() if p.requires_grad]
    pairs = [(a, p) for a, p in zip(averaged.parameters(), module.parameters(), strict=True) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=schedule.peak_lr, betas=(0.9, 0.99), weight_decay=schedule.weight_decay)
    parts: dict[str, Part] = {"module": module, "averaged": averaged, "optimizer": optimizer}
    update, first = _resume(parts, state_path) if state_path.is_file() else (first, first)
    log = _Log(log_path, update)
    bar = progress_bar(range(update, schedule.until), stage=log_path.stem, total=schedule.until, initial=update)
    for update in bar:
        optimizer.param_groups[0]["lr"] = schedule.learning_rate(update, first)
        loss = loss_of(update)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(schedule.average, (update - first + 1) / (update - first + 10))
        torch._foreach_lerp_([a for a, _ in pairs], [p.detach() for _, p in pairs], 1 - decay)
        done = update + 1
        log.add(loss.item())
        if done % schedule.log_every == 0:
            log.write(done, optimizer.param_groups[0]["lr"])
        if done % schedule.save_every == 0 or done == schedule.until:
            state = {k: v.state_dict() for k, v in parts.items()} | {"update": done, "first": first}
            atomic_torch_save(state, state_path)
    return averaged


def _resume(parts: dict[str, Part], state_path: Path) -> tuple[int, int]:
    """Loads a state; returns its update, and the update at which its optimizer was fresh."""
    state = torch.load(state_path)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["update"], state["first"]


class _Log:
    """JSON lines of a stage; a resumed run drops the lines after its state."""

    def __init__(self, path: Path, update: int) -> None:
        self._path = path
        self._losses: list[float] = []
        self._since = time.perf_counter()
        if path.is_file():
            kept = [line for line in path.read_text().splitlines() if _update_of(line) <= update]
            atomic_write(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))

    def add(self, loss: float) -> None:
        """Records the loss of an update."""
        self._losses.append(loss)

    def write(self, update: int, learning_rate: float) -> None:
        """Appends a line with the mean loss and time per update since the last line."""
        now, count = time.perf_counter(), len(self._losses)
        line = {
            "update": update,
            "loss": sum(self._losses) / count,
            "learning_rate": learning_rate,
            "update_s": round((now - self._since) / count, 4),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._losses, self._since = [], now


def _update_of(line: str) -> float:
    """Returns the update of a log line; infinity if a kill cut the line off."""
    try:
        return json.loads(line)["update"]
    except (json.JSONDecodeError, KeyError):
        return math.inf
