"""Paints candidates: samples of a policy that people or simulated annotators will score."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.config.run_config import CandidatesConfig, RunConfig
from rlhf.data.buckets import Size, batches_of_one_size
from rlhf.diffusion.policy_manifest import read_manifest
from rlhf.diffusion.sampler import SampledTask, Sampler, SamplingTask
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_write_json, read_json
from rlhf.storage.tables import CANDIDATES, PROMPTS, count_rows, image_cell, stream_table, write_table

MADE_FROM = "made_from.json"


def make_candidates(
    sampler: Sampler,
    sizes: Mapping[str, Size],
    out: Path,
    config: CandidatesConfig,
    *,
    seed: int,
    first_sample: int = 0,
) -> int:
    """Inpaint every prompt `samples_per_prompt` times into `out/part-*.parquet`; returns the number of images there.

    `sizes` are those of the prompts by id, in the order of the candidates; images of one size are denoised together.
    Sample i uses entry i of `num_inference_steps`, `eta` and `strength` (modulo their lengths), so that
    annotators see good and poor samples alike. Samples are numbered from `first_sample`, and their noise depends on the
    number, so candidates of several policies have distinct keys. A part holds one finished task; a run that was killed
    goes on with the tasks that have no part.
    """
    tasks = plan_candidates(sizes, config, seed=seed, first_sample=first_sample)
    parts = {task.number: out / f"part-{task.number:05d}.parquet" for task in tasks}
    there = {path.name for path in out.glob("part-*.parquet")}
    images = sum(count_rows(path) for path in parts.values() if path.name in there)
    left = [task for task in tasks if parts[task.number].name not in there]
    total = len(sizes) * config.samples_per_prompt
    with progress_bar(stage="candidates", total=total, initial=images) as bar:
        for done in sampler.sample(left):
            write_table(_rows(done, sampler.version, seed), CANDIDATES, parts[done.task.number])
            images += len(done.images)
            bar.update(len(done.images))
    return images


def plan_candidates(
    sizes: Mapping[str, Size], config: CandidatesConfig, *, seed: int, first_sample: int
) -> list[SamplingTask]:
    """The tasks of the stage: one sample of each prompt in a micro-batch; all prompts before the next sample."""
    batches = batches_of_one_size(sizes, sizes, config.micro_batch_size)
    samples = range(first_sample, first_sample + config.samples_per_prompt)
    return [
        SamplingTask(
            number=number,
            prompt_ids=batch,
            sample_indices=range(sample, sample + 1),
            plan=sample_plan(config, sample),
            seed_key=(seed, "candidates"),
        )
        for number, (sample, batch) in enumerate((sample, batch) for sample in samples for batch in batches)
    ]


def claim_folder(out: Path, made_from: dict[str, Any], *, overwrite: bool = False) -> None:
    """Write the origin of the candidates into `out/made_from.json`.

    Raises UserError if `out` holds candidates of another origin; with `overwrite` they are removed instead.
    """
    path, parts = out / MADE_FROM, sorted(out.glob("*.parquet"))
    before = read_json(path, "remove the folder, or choose another --out") if path.is_file() else {}
    if before == made_from:
        return
    if parts and not overwrite:
        other = ", ".join(key for key in made_from if key not in before or before[key] != made_from[key])
        raise UserError(f"{out}: holds candidates of another {other}; choose another --out, or add --overwrite")
    for part in parts:
        part.unlink()
    atomic_write_json(path, made_from)


def describe_origin(
    config: RunConfig, prompts: Path, policy: Path | None, *, split: str, first_sample: int
) -> dict[str, Any]:
    """Everything that candidates depend on, by name."""
    digest = hashlib.sha256()
    for row in stream_table(prompts, PROMPTS):
        if row["split"] == split:
            caption = (row["caption"] or "").encode()
            for part in (row["prompt_id"].encode(), row["image"]["bytes"], row["mask"]["bytes"], caption):
                digest.update(part)
    return {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude_none=True),
        "candidates": config.candidates.model_dump(mode="json"),
        "policy": None if policy is None else read_manifest(policy)["checksum"],
        "prompts": digest.hexdigest(),
        "first_sample": first_sample,
    }


def sample_plan(config: CandidatesConfig, sample_index: int) -> RolloutPlan:
    """The rollout plan of sample `sample_index` of every prompt."""
    steps = config.num_inference_steps[sample_index % len(config.num_inference_steps)]
    eta = config.eta[sample_index % len(config.eta)]
    strength = config.strength[sample_index % len(config.strength)]
    return RolloutPlan(
        num_inference_steps=steps,
        eta=eta,
        stochastic_steps=frozenset(range(steps)) if eta > 0 else frozenset(),
        first_step=min(steps - 1, round(steps * (1 - strength))),
    )


def _rows(done: SampledTask, version: int, seed: int) -> Iterator[dict[str, Any]]:
    keys = [(prompt_id, sample) for prompt_id in done.task.prompt_ids for sample in done.task.sample_indices]
    for (prompt_id, sample_index), image in zip(keys, done.images, strict=True):
        yield {
            "prompt_id": prompt_id,
            "sample_index": sample_index,
            "seed": seed,
            "image": image_cell(image, f"{prompt_id}_{sample_index}.png"),
            "policy_version": version,
            "num_inference_steps": done.task.plan.num_inference_steps,
            "eta": done.task.plan.eta,
            "first_step": done.task.plan.first_step,
        }


def keep_prompts(prompts: Path, candidates: Path) -> None:
    """Copy the prompts beside their candidates, into the folder that `prompts_of` reads."""
    write_table(stream_table(prompts, PROMPTS), PROMPTS, candidates / "prompts" / "prompts.parquet")


def prompts_of(candidates: Path, given: Path | None) -> Path:
    """The folder of these candidates' prompts: the given one, else their own copy.

    Raises UserError if the candidates folder does not exist or holds no copy.
    """
    if given is not None:
        return given
    if not candidates.is_dir():
        raise UserError(f"{candidates}: no such folder; name one that `rlhf candidates` wrote")
    if not (candidates / "prompts" / "prompts.parquet").is_file():
        raise UserError(f"{candidates}: no copy of the prompts in prompts/; name their folder with --prompts")
    return candidates / "prompts"
