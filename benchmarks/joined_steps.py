"""The transitions of several steps as one batch of training: `python -m benchmarks.joined_steps --alone NAME`."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.measure import report_alone
from benchmarks.update import make_config, plain, roll_out
from rlhf.alignment.objective import TrainingBatch
from rlhf.diffusion.trajectories import Trajectories


@dataclass(frozen=True, kw_only=True)
class JoinedSteps(Trajectories):
    """K x B transitions of K steps, to be trained in one pass as if they were of one step: K is 1 and B K x B."""

    index: torch.Tensor
    """int64 [K x B], on the CPU: each one's position in the schedule."""

    def steps_at(self, k: int) -> torch.Tensor:
        """The only pass has a step per row."""
        return self.index


def join_steps(batch: TrainingBatch) -> TrainingBatch:
    """The same transitions in the same order; the loss is the same, being a mean over steps of one size."""
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
    """An update of plain PyTorch: `joined`, all steps in one pass, or `apart`."""
    batch = roll_out(make_config())
    return plain({"joined": join_steps(batch), "apart": batch}[name])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", required=True, help="run `joined` or `apart` and print its memory")
    name = parser.parse_args().alone
    report_alone(lambda: make_update(name))
