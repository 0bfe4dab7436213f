"""Measures how much of a gradient is signal: `python -m benchmarks.probes.gradient_signal --prompts DIR --reward DIR`.

Every prompt's samples give one gradient of the adapters, by the algorithm's own plan, advantages and loss. Products of
different prompts' gradients have the mean gradient's squared length as their mean; over a gradient's own squared length
it is the share of signal in one prompt. With half of it, twice the prompts make an update as good. So it says which
algorithm learns most from a sample, and which steps are worth training: those that a whole group shares are told apart;
`awm` and `nft` draw noise levels for each sample, so there `align.trained_range` tells them apart.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.objective import TrainingBatch
from rlhf.config.config_files import find_run_file, load_config
from rlhf.config.devices import resolve_device
from rlhf.config.run_config import AlignConfig
from rlhf.data.prompts import Prompt, load_prompts
from rlhf.diffusion.families.family import cells_of
from rlhf.diffusion.policy import Policy, load_policy, make_trainable
from rlhf.diffusion.rollout import rollout
from rlhf.progress import progress_bar
from rlhf.rewards.open_reward import open_reward
from rlhf.rewards.scores import Reward

Gradients = Mapping[str, torch.Tensor]
"""Gradient [W] of the trained weights by the name of what is trained."""


def gradients_of(policy: Policy, prompt: Prompt, reward: Reward, config: AlignConfig, update: int) -> Gradients:
    """Returns the gradients of one prompt's samples for what the `update` trains."""
    algorithm, count = algorithm_of(config), config.samples_per_prompt
    plan = algorithm.plan_rollout(config, update, 0)
    with torch.no_grad():
        done = rollout(policy, [prompt], plan, sample_indices=range(count), seed_key=("signal", update))
    scores = reward.score(done.images, prompt.mask.expand(count, -1, -1, -1), [prompt.caption] * count).reward
    t = done.trajectories
    batch = TrainingBatch(
        trajectories=t,
        advantages=algorithm.compute_advantages(scores.float().view(1, -1), config).flatten(),
        trust_weights=torch.ones(count),
    )
    schedule = policy.family.schedule(config.num_inference_steps, cells_of(t.latents))
    trained = [p for p in policy.network.parameters() if p.requires_grad]
    found: dict[str, torch.Tensor] = {}
    for k in range(len(t.latents)):
        steps = t.steps_at(k)
        output = policy.predict(t.latents[k], schedule.timesteps[steps], t.condition, t.text)
        loss = algorithm.objective.compute_loss(output, None, batch, k, schedule, config).loss
        parts = torch.autograd.grad(loss, trained, allow_unused=True)
        flat = [torch.zeros_like(p) if part is None else part for p, part in zip(trained, parts, strict=True)]
        name = f"step {int(steps[0]) + 1}" if bool((steps == steps[0]).all()) else f"noise level drawn {k + 1}."
        found[name] = torch.cat([part.flatten() for part in flat])
    return found


def signal_share(gradients: Sequence[torch.Tensor]) -> float:
    """Returns the mean product of different gradients [W] over the mean squared length of one."""
    total = torch.stack(list(gradients)).sum(0)
    own = sum(float(g @ g) for g in gradients)
    pairs = len(gradients) * (len(gradients) - 1)
    return (float(total @ total) - own) / pairs / (own / len(gradients))


def main() -> None:
    """Prints the share of signal by position in the schedule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="folder of `rlhf prompts`")
    parser.add_argument("--reward", type=Path, required=True, help="folder of `rlhf reward`, or a file with rewards:")
    parser.add_argument("--config", default="demo", help="a run file (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--count", type=int, default=64, help="number of prompts (default: %(default)s)")
    args = parser.parse_args()
    config = load_config(find_run_file(args.config), args.set)
    policy = load_policy(config.model)
    make_trainable(policy, "lora", rank=config.align.lora_rank, targets=config.align.lora_targets, seed=0)
    reward = open_reward(args.reward, resolve_device("cpu"))
    prompts = load_prompts(args.prompts)
    by_step: dict[str, list[torch.Tensor]] = defaultdict(list)
    chosen = prompts[:: max(1, len(prompts) // args.count)][: args.count]
    with progress_bar(stage="gradients", total=len(chosen)) as bar:
        for update, prompt in enumerate(chosen):
            for name, gradient in gradients_of(policy, prompt, reward, config.align, update).items():
                by_step[name].append(gradient)
            bar.update()
    for name, gradients in sorted(by_step.items()):
        if len(gradients) > 1:
            print(f"{config.align.algorithm}, {name}: {signal_share(gradients):.4f}, {len(gradients)} prompts")


if __name__ == "__main__":
    main()
