"""Samples of a policy for people (or simulated annotators) to score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf.config import CandidatesConfig
from rlhf.errors import UserError
from rlhf.images import decode_image, encode_png, image_to_tensor, tensor_to_image
from rlhf.policy import Policy
from rlhf.progress import progress_bar
from rlhf.prompts import Prompt
from rlhf.rollout import RolloutPlan, rollout
from rlhf.tables import CANDIDATES, PROMPTS, image_cell, read_table, write_table


def make_candidates(
    policy: Policy, prompts: list[Prompt], out: Path, config: CandidatesConfig, *, seed: int, first_sample: int = 0
) -> int:
    """Inpaint every prompt `samples_per_prompt` times into `out/candidates.parquet`; returns the number of images.

    Sample i uses entry i of `num_inference_steps`, `eta` and `strength` (modulo their lengths), so that
    annotators see good and poor samples alike. They are numbered from `first_sample`, and their noise
    depends on the number, so candidates of several policies can be told apart.
    """
    rows: list[dict[str, Any]] = []
    total = len(prompts) * config.samples_per_prompt
    with progress_bar(stage="candidates", total=total) as bar:
        for sample_index in range(first_sample, first_sample + config.samples_per_prompt):
            plan = sample_plan(config, sample_index)
            for start in range(0, len(prompts), config.micro_batch_size):
                batch = prompts[start : start + config.micro_batch_size]
                done = rollout(policy, batch, plan, sample_indices=[sample_index], seed_key=(seed, "candidates"))
                for prompt, image in zip(batch, done.images, strict=True):
                    rows.append(_row(prompt, sample_index, image, policy.version, plan, seed))
                bar.update(len(batch))
    write_table(rows, CANDIDATES, out / "candidates.parquet")
    return len(rows)


def sample_plan(config: CandidatesConfig, sample_index: int) -> RolloutPlan:
    """How sample `sample_index` of every prompt is denoised."""
    steps = config.num_inference_steps[sample_index % len(config.num_inference_steps)]
    eta = config.eta[sample_index % len(config.eta)]
    strength = config.strength[sample_index % len(config.strength)]
    return RolloutPlan(
        num_inference_steps=steps,
        eta=eta,
        stochastic_steps=frozenset(range(steps)) if eta > 0 else frozenset(),
        first_step=min(steps - 1, round(steps * (1 - strength))),
    )


def _row(
    prompt: Prompt, sample_index: int, image: torch.Tensor, version: int, plan: RolloutPlan, seed: int
) -> dict[str, Any]:
    return {
        "prompt_id": prompt.prompt_id,
        "sample_index": sample_index,
        "seed": seed,
        "image": image_cell(encode_png(tensor_to_image(image)), f"{prompt.prompt_id}_{sample_index}.png"),
        "policy_version": version,
        "num_inference_steps": plan.num_inference_steps,
        "eta": plan.eta,
        "first_step": plan.first_step,
    }


def load_candidates(folder: Path, prompts: dict[str, Prompt]) -> dict[tuple[str, int], torch.Tensor]:
    """Candidate images by (prompt_id, sample_index), for the given prompts only.

    Raises UserError naming the candidate whose image is unreadable or of another size.
    """
    images = {}
    for row in read_table(folder, CANDIDATES):
        prompt = prompts.get(row["prompt_id"])
        if prompt is None:
            continue
        label = f"{folder}: candidate {row['prompt_id']} sample {row['sample_index']}"
        if not row["image"] or not row["image"]["bytes"]:
            raise UserError(f"{label}: image holds no bytes")
        image = image_to_tensor(decode_image(row["image"]["bytes"], name=label))
        if image.shape != prompt.image.shape:
            raise UserError(f"{label}: is {tuple(image.shape[1:])}, its prompt {tuple(prompt.image.shape[1:])}")
        images[row["prompt_id"], row["sample_index"]] = image
    if not images:
        raise UserError(f"{folder}: no candidate belongs to these prompts; check that both are of one run")
    return images


def select_candidates(
    prompts: dict[str, Prompt],
    candidates: dict[tuple[str, int], torch.Tensor],
    select: str,
    reward: Path | None,
    *,
    seed: int,
    limit: int | None,
    earlier: Sequence[Path] = (),
) -> dict[tuple[str, int], torch.Tensor]:
    """The candidates of the prompts that `select_prompts` chooses, in the order in which they are to be annotated."""
    from rlhf.selection import select_prompts

    keys: dict[str, list[tuple[str, int]]] = {}
    for key in candidates:
        keys.setdefault(key[0], []).append(key)

    def pictures(prompt_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.stack([candidates[key] for key in keys[prompt_id]])
        return images, prompts[prompt_id].mask.expand(len(images), -1, -1, -1)

    counts = {name: len(samples) for name, samples in keys.items()}
    chosen = select_prompts(counts, pictures, select, reward, seed=seed, limit=limit, earlier=earlier)
    return {key: candidates[key] for name in chosen for key in keys[name]}


def keep_prompts(prompts: Path, candidates: Path) -> None:
    """Copy the prompts beside the candidates made from them, where `prompts_of` looks."""
    write_table(read_table(prompts, PROMPTS), PROMPTS, candidates / "prompts" / "prompts.parquet")


def prompts_of(candidates: Path, given: Path | None) -> Path:
    """Where the prompts of these candidates are: the folder that was given, else their own copy.

    Raises UserError where the candidates folder does not exist or holds no copy.
    """
    if given is not None:
        return given
    if not candidates.is_dir():
        raise UserError(f"{candidates}: no such folder; name one that `rlhf candidates` wrote")
    if not (candidates / "prompts" / "prompts.parquet").is_file():
        raise UserError(f"{candidates}: no copy of the prompts in prompts/; name their folder with --prompts")
    return candidates / "prompts"
