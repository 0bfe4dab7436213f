"""Candidates in parts: made once, gone on with after a crash, never mixed with those of other settings."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from small_parts import prompt_row, prompts_of_three_sizes, small_config, small_prompts, write_prompts

from rlhf.config.run_config import CandidatesConfig, RunConfig
from rlhf.data.buckets import Size
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.candidates import claim_folder, describe_origin, make_candidates, plan_candidates
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.sampler import InProcessSampler, SampledTask, SamplingTask
from rlhf.errors import UserError
from rlhf.storage.decoding import read_header
from rlhf.storage.tables import CANDIDATES, read_table

CONFIG = CandidatesConfig(samples_per_prompt=2, num_inference_steps=(3,), micro_batch_size=3)
SIZES = {f"p{i}": (32, 32) for i in range(8)}


class CrashingSampler(InProcessSampler):
    """Ends after some tasks, and notes which it was given."""

    survives = 100

    def sample(self, tasks: Iterable[SamplingTask]) -> Iterator[SampledTask]:
        self.given = list(tasks)
        yield from islice(super().sample(self.given), self.survives)
        if len(self.given) > self.survives:
            raise RuntimeError("killed")


@pytest.fixture(scope="module")
def sampler(small_pipeline: Path) -> CrashingSampler:
    by_id = {p.prompt_id: prompt_row(p) for p in small_prompts(8)}
    return CrashingSampler(load_policy(small_config(small_pipeline).model), lambda names: [by_id[n] for n in names])


@pytest.fixture(scope="module")
def rows(sampler: CrashingSampler, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("whole")
    assert make_candidates(sampler, SIZES, out, CONFIG, seed=0) == 16
    assert [path.name for path in sorted(out.iterdir())] == [f"part-0000{i}.parquet" for i in range(6)]
    return read_table(out, CANDIDATES)


def test_every_prompt_has_every_sample_once(rows: list[dict]) -> None:
    assert [(row["prompt_id"], row["sample_index"]) for row in rows] == [(p, s) for s in range(2) for p in SIZES]
    assert len({row["image"]["bytes"] for row in rows}) == 16


def test_a_killed_run_goes_on_with_the_parts_that_are_missing(
    sampler: CrashingSampler, rows: list[dict], tmp_path: Path
) -> None:
    sampler.survives = 4
    with pytest.raises(RuntimeError, match="killed"):
        make_candidates(sampler, SIZES, tmp_path, CONFIG, seed=0)
    sampler.survives = 100
    assert make_candidates(sampler, SIZES, tmp_path, CONFIG, seed=0) == 16
    assert [task.number for task in sampler.given] == [4, 5]
    assert read_table(tmp_path, CANDIDATES) == rows


def test_samples_numbered_on_have_noise_of_their_own() -> None:
    first, second = (plan_candidates(SIZES, CONFIG, seed=0, first_sample=n) for n in (0, 2))
    samples = [{task.sample_indices.start for task in tasks} for tasks in (first, second)]
    assert samples == [{0, 1}, {2, 3}]
    assert [task.number for task in second] == list(range(6))


def test_prompts_of_several_sizes_are_painted_as_those_of_each_size_alone(small_pipeline: Path, tmp_path: Path) -> None:
    prompts = prompts_of_three_sizes(8)
    table = PromptTable(write_prompts(prompts, tmp_path / "prompts"))
    assert table.sizes == {prompt.prompt_id: prompt.size for prompt in prompts}
    mixed = InProcessSampler(load_policy(small_config(small_pipeline).model), table.rows)
    make_candidates(mixed, table.sizes, tmp_path / "all", CONFIG, seed=0)
    everyone = read_table(tmp_path / "all", CANDIDATES)
    painted = {(row["prompt_id"], row["sample_index"]): row["image"] for row in everyone}
    assert len(painted) == 16
    for size in set(table.sizes.values()):
        make_candidates(mixed, one_size(table, size), tmp_path / str(size), CONFIG, seed=0)
        for row in read_table(tmp_path / str(size), CANDIDATES):
            assert row["image"] == painted[row["prompt_id"], row["sample_index"]]
            header = read_header(row["image"]["bytes"], name="candidate")
            assert (header.height, header.width) == size


def one_size(table: PromptTable, size: Size) -> dict[str, Size]:
    return {name: own for name, own in table.sizes.items() if own == size}


def origin(config: RunConfig, prompts: Path) -> dict:
    return describe_origin(config, prompts, None, split="train", first_sample=0)


def test_a_folder_of_other_settings_is_neither_mixed_nor_overwritten_unasked(
    sampler: CrashingSampler, small_pipeline: Path, tmp_path: Path
) -> None:
    config, out = small_config(small_pipeline), tmp_path / "candidates"
    prompts = write_prompts(small_prompts(8), tmp_path / "prompts")
    claim_folder(out, origin(config, prompts))
    make_candidates(sampler, PromptTable(prompts, split="train").sizes, out, CONFIG, seed=0)
    claim_folder(out, origin(config, prompts))
    assert len(list(out.glob("*.parquet"))) == 6, "the same settings go on"
    with pytest.raises(UserError, match=r"candidates of another seed; .*--overwrite"):
        claim_folder(out, origin(config.model_copy(update={"seed": 1}), prompts))
    others = [replace(p, image=-p.image) for p in small_prompts(8)]
    other = origin(config, write_prompts(others, tmp_path / "others"))
    with pytest.raises(UserError, match="candidates of another prompts"):
        claim_folder(out, other)
    captioned = [replace(p, caption="a cat") for p in small_prompts(8)]
    assert origin(config, write_prompts(captioned, tmp_path / "captioned")) != origin(config, prompts)
    claim_folder(out, other, overwrite=True)
    assert not list(out.glob("*.parquet"))
