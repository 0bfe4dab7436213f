"""A small run of a family on disk, and its samplers; as a program, a process that samples for learners of another."""

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from family_cases import CASES
from family_painting import prompt_of
from small_parts import FAST, write_prompts

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.config.run_config import AlignConfig, ModelConfig
from rlhf.data.prompts import PromptTable, load_prompts
from rlhf.diffusion.families.open_family import guidance_kinds
from rlhf.diffusion.families.pipeline_folder import PAINTING
from rlhf.diffusion.families.text_cache import TextCache
from rlhf.diffusion.policy import Policy, load_policy, make_trainable
from rlhf.diffusion.policy_weights import read_trainable_state, save_policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.text_encoding import fill_cache
from rlhf.diffusion.trained_weights import load_trainable_state, trainable_state
from rlhf.diffusion.trajectories import Rollout

ALIGN = AlignConfig(**FAST)
TASKS = (slice(0, 1), slice(1, 2), slice(0, 2))
"""Prompts of tasks; the last has those of both others."""


def build_run(name: str, place: Path) -> None:
    """Writes model, a policy to start from whose adapters do something, and two prompts with captions."""
    case = CASES[name]
    case.build().save_pretrained(place / "model")
    prompts = [replace(prompt_of(64, 64, seed), caption="a cat" * (1 + seed)) for seed in range(2)]
    write_prompts(prompts, place / "prompts")
    policy = load_policy(model_of(place), parts=PAINTING, texts=texts_of(place))
    make_trainable(policy, "lora", rank=ALIGN.lora_rank, targets=None, seed=1)
    torch.manual_seed(2)
    state = {name: t + 0.05 * torch.randn_like(t) for name, t in trainable_state(policy.network).items()}
    save_policy(policy.family, state, place / "policy", version=1, trainable="lora", base=str(place / "model"))


def model_of(place: Path) -> ModelConfig:
    """The run's model, with true guidance if it takes that."""
    guided = {"guidance": "true", "guidance_scale": 3.0, "negative_caption": "blur"}
    is_guided = "true" in guidance_kinds(place / "model")
    return ModelConfig(path=str(place / "model"), device="cpu", **(guided if is_guided else {}))


def texts_of(place: Path) -> TextCache:
    """The captions' embeddings."""
    return fill_cache(model_of(place), PromptTable(place / "prompts"), place / "texts")


def open_sampler(place: Path) -> Policy:
    """What a sampler holds after it has loaded the weights of the run's start."""
    policy = load_policy(model_of(place), parts=PAINTING, texts=texts_of(place))
    make_trainable(policy, "lora", rank=ALIGN.lora_rank, targets=None, seed=99)
    load_trainable_state(policy.network, read_trainable_state(place / "policy", policy.family, "lora"))
    return policy


def sample(policy: Policy, place: Path, update: int = 0) -> list[Rollout]:
    """The rollouts of `TASKS`."""
    prompts, plan = load_prompts(place / "prompts"), algorithm_of(ALIGN).plan_rollout(ALIGN, update, 0)
    return [rollout(policy, prompts[task], plan, sample_indices=range(4), seed_key=(0, update)) for task in TASKS]


def sample_elsewhere(places: Iterable[Path]) -> None:
    """Has another process write `sampled.pt` of each run, all by one process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(torch.get_num_threads()), *map(str, places)]
    subprocess.run(command, check=True, env=environment, capture_output=True)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    for folder in map(Path, sys.argv[2:]):
        torch.save(sample(open_sampler(folder), folder), folder / "sampled.pt")
