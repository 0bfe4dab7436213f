"""Trains the transitions of several steps as one batch: `python -m benchmarks.suite.joined_steps --alone NAME`."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.measure import report_alone
from benchmarks.suite.update import make_config, plain, roll_out
from rlhf.alignment.objective import TrainingBatch
from rlhf.diffusion.trajectories import Trajectories


@dataclass(frozen=True, kw_only=True)
class JoinedSteps(Trajectories):
    """K x B transitions of K steps, trained in one pass like those of one step."""

    index: torch.Tensor
    """Position of each transition in the schedule, int64 [K x B], on the CPU."""

    def steps_at(self, k: int) -> torch.Tensor:
        """Returns the step of each row of the only pass."""
        return self.index


def join_steps(batch: TrainingBatch) -> TrainingBatch:
    """Joins the transitions in the same order. The loss stays the same, since it is a mean over steps of equal size."""
    t = batch.trajectories
    assert isinstance(t, Trajectories)
    steps = len(t.latents)
    joined = JoinedSteps(
        condition=torch.cat([t.condition] * steps),
        latent_mask=torch.cat([t.latent_mask] * steps),
        latents=t.latents.flatten(0, 1)[None],
        next_latents=t.next_latents.flatten(0, 1)[None],
        old_log_prob=t.old_log_prob.flatten()[None],
        step_indices=t.step_indices,
        index=torch.cat([t.steps_at(k) for k in range(steps)]),
    )
    return TrainingBatch(
        trajectories=joined,
        advantages=torch.cat([batch.advantages] * steps),
        trust_weights=torch.cat([batch.trust_weights] * steps),
    )


def make_update(name: str) -> Callable[[], object]:
    """Returns an update in plain PyTorch: `joined` trains all steps in one pass, `apart` in one pass each."""
    batch = roll_out(make_config())
    return plain({"joined": join_steps(batch), "apart": batch}[name])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", required=True, help="run `joined` or `apart` and print its memory")
    name = parser.parse_args().alone
    report_alone(lambda: make_update(name))
