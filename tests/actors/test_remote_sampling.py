"""Candidates and evaluation by samplers on this machine's Ray: the images and figures of one process, bit for bit."""

import json
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from processes import find_process, wait_for
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from actors.remote_sampler import remote_samplers
from actors.telemetry.incidents import read_incidents
from rlhf.config.run_config import CandidatesConfig, EvaluateConfig, RunConfig
from rlhf.data.prompts import PromptTable, decode_prompt
from rlhf.diffusion.candidates import make_candidates
from rlhf.diffusion.policy import load_policy, make_trainable
from rlhf.diffusion.policy_weights import save_policy
from rlhf.diffusion.sampler import InProcessSampler
from rlhf.diffusion.trained_weights import trainable_state
from rlhf.evaluation.evaluation import evaluate
from rlhf.evaluation.judging import Jury
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.storage.tables import CANDIDATES, read_table

pytestmark = pytest.mark.ray
CONFIG = CandidatesConfig(samples_per_prompt=3, num_inference_steps=(3, 4), micro_batch_size=3)
IDS = [f"p{i}" for i in range(8)]


@pytest.fixture(scope="module")
def config(small_pipeline: Path) -> RunConfig:
    return small_config(small_pipeline)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> PromptTable:
    return PromptTable(write_prompts(small_prompts(8), tmp_path_factory.mktemp("prompts")), split="train")


@pytest.fixture(scope="module")
def policy(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy folder whose adapters are of another rank than the configuration's."""
    opened, folder = load_policy(config.model), tmp_path_factory.mktemp("policy") / "policy-000007"
    make_trainable(opened, "lora", rank=3, targets=("to_q", "conv1"), seed=1)
    torch.manual_seed(5)
    state = {name: tensor + 0.3 * torch.randn_like(tensor) for name, tensor in trainable_state(opened.network).items()}
    save_policy(opened.family, state, folder, version=7, trainable="lora", base=config.model.path)
    return folder


def candidates_here(config: RunConfig, table: PromptTable, policy: Path | None, out: Path) -> list[dict]:
    make_candidates(InProcessSampler(load_policy(config.model, policy), table.rows), table.sizes, out, CONFIG, seed=0)
    return read_table(out, CANDIDATES)


@pytest.mark.slow
def test_two_samplers_make_the_candidates_of_one_process_of_base_and_policy(
    config: RunConfig, table: PromptTable, policy: Path, tmp_path: Path
) -> None:
    with remote_samplers(config, table, [policy], tmp_path, workers=2) as open_policy:
        assert make_candidates(open_policy(None), table.sizes, tmp_path / "base", CONFIG, seed=0) == 24
        assert make_candidates(open_policy(policy), table.sizes, tmp_path / "policy", CONFIG, seed=0) == 24
    assert read_table(tmp_path / "base", CANDIDATES) == candidates_here(config, table, None, tmp_path / "1")
    assert read_table(tmp_path / "policy", CANDIDATES) == candidates_here(config, table, policy, tmp_path / "2")


def test_a_killed_sampler_leaves_the_same_candidates(
    config: RunConfig, table: PromptTable, policy: Path, tmp_path: Path
) -> None:
    def kill() -> None:
        wait_for(lambda: any((tmp_path / "ours").glob("*.parquet")))
        find_process("RolloutSampler").kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with remote_samplers(config, table, [policy], tmp_path, workers=1) as open_policy:
        make_candidates(open_policy(policy), table.sizes, tmp_path / "ours", CONFIG, seed=0)
    killer.join()
    assert [(line["role"], line["cause"]) for line in read_incidents(tmp_path)] == [("sampler", "died")]
    assert read_table(tmp_path / "ours", CANDIDATES) == candidates_here(config, table, policy, tmp_path / "theirs")


@pytest.mark.slow
def test_an_evaluation_by_samplers_has_the_figures_of_one_process(
    config: RunConfig, table: PromptTable, policy: Path, tmp_path: Path
) -> None:
    prompts = [decode_prompt(row) for row in table.rows(IDS)]
    reward = load_reward(save_small_reward(tmp_path / "reward"))
    settings = EvaluateConfig(num_inference_steps=3, micro_batch_size=4)

    def figures(open_policy, out: Path) -> dict:
        return asdict(evaluate(open_policy, [policy], prompts, Jury(reward=reward), out, settings, seed=0))

    here = figures(lambda p: InProcessSampler(load_policy(config.model, p), table.rows), tmp_path / "here")
    with remote_samplers(config, table, [policy], tmp_path, workers=2) as open_policy:
        there = figures(open_policy, tmp_path / "there")
    assert json.dumps(there) == json.dumps(here)
    assert there["curve"][-1]["policy_version"] == 7
    assert there["gold_gain"]["value"] != 0
