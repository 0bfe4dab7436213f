"""ZeRO stage 3 on two ranks: no rank holds the network whole, and the results are those of one that does."""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from small_learner import align_config, batches
from small_parts import small_config
from torch.nn.modules.module import register_module_forward_hook, register_module_parameter_registration_hook

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.learner import Learner
from rlhf.alignment.split_network import load_split_policy
from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.policy_weights import save_policy
from rlhf.errors import UserError

RUNS = [
    {"precision": "fp32", "trainable": "lora"},
    {"precision": "fp32", "trainable": "full"},
    {"precision": "fp32", "trainable": "lora", "algorithm": "nft"},
]


@pytest.mark.slow
@pytest.mark.usefixtures("process_group")
def test_a_network_opened_layer_by_layer_learns_what_a_whole_one_learns(small_pipeline: Path, tmp_path: Path) -> None:
    compare_stages(small_pipeline, tmp_path, RUNS[:1], rank=0)
    assert_equal_results(tmp_path, RUNS[:1])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("process_group")
def test_split_over_two_ranks_no_rank_holds_the_network_and_results_are_those_of_stage_0(
    small_pipeline: Path, tmp_path: Path
) -> None:
    mp.spawn(_run_a_rank, args=(small_pipeline, tmp_path), nprocs=2)
    assert_equal_results(tmp_path, RUNS)
    for number, run in enumerate(RUNS):
        alone = start_learner(small_pipeline, run, zero_stage=3, is_resized=True)
        alone.load(tmp_path / f"checkpoint-{number}")
        saved = torch.load(tmp_path / f"first-{number}.pt", weights_only=True)
        for kind, state in states_of(alone).items():
            assert state.keys() == saved[kind].keys()
            assert all(torch.equal(tensor, saved[kind][name]) for name, tensor in state.items()), (run, kind)


@pytest.mark.usefixtures("process_group")
def test_a_split_network_in_bf16_computes_what_a_whole_one_computes(small_pipeline: Path) -> None:
    run = {"precision": "bf16", "trainable": "lora"}
    whole, split = (start_learner(small_pipeline, run, zero_stage=stage) for stage in (0, 3))
    rolled = batches(whole.policy, whole.config)
    assert whole.train(rolled)["ratio_error"] == split.train(rolled)["ratio_error"] == 0.0
    expected, found = whole.weights(), split.weights()
    far = sum(int(((found[name] - tensor).abs() > 2e-5).sum()) for name, tensor in expected.items())
    # Adam's first step is the sign of the gradient, which rounding turns where the gradient is next to nothing.
    assert far <= sum(tensor.numel() for tensor in expected.values()) / 1000


def test_weights_that_cannot_be_split_are_refused(small_pipeline: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(small_pipeline, tmp_path / "broken")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    kept = tensors.pop("conv_in.weight")
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"weights lack or hold unknown conv_in\.weight"):
        load_split_policy(ModelConfig(path=str(broken)))
    save_file(tensors | {"conv_in.weight": kept, "added": kept.clone()}, file)
    with pytest.raises(UserError, match="weights lack or hold unknown added"):
        load_split_policy(ModelConfig(path=str(broken)))
    torch.save(tensors, file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(UserError, match=r"no safetensors files, and align\.zero_stage 3 .*; save the pipeline again"):
        load_split_policy(ModelConfig(path=str(broken)))


def _run_a_rank(rank: int, pipeline: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    warnings.simplefilter("ignore", FutureWarning)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    compare_stages(pipeline, folder, RUNS, rank)


def compare_stages(pipeline: Path, folder: Path, runs: list[dict], rank: int) -> None:
    """Trains two updates at stage 0, and on the same rollouts at stage 3, resumed in between; rank 0 writes both."""
    for number, run in enumerate(runs):
        learner = start_learner(pipeline, run, zero_stage=0)
        begun, rolled = learner.weights(), []
        for update in range(2):
            with learner.acting() as policy:
                rolled.append(batches(policy, learner.config, update=2 * update + rank))
            learner.train(rolled[-1])
        keep(states_of(learner) | {"begun": begun}, folder / f"stage-0-{number}.pt", rank)
        learner = train_split(pipeline, run, rolled, folder, number, rank)
        states = states_of(learner)
        keep(states, folder / f"stage-3-{number}.pt", rank)
        if rank == 0:
            family, kind = learner.policy.family, run["trainable"]
            save_policy(family, states["averaged"], folder / f"{number}", version=1, trainable=kind, base="small")


def train_split(pipeline: Path, run: dict, rolled: list, folder: Path, number: int, rank: int) -> Learner:
    with Peak() as peak:
        learner = start_learner(pipeline, run, zero_stage=3)
        learner.train(rolled[0])
        learner.save(folder / f"checkpoint-{number}", 1)
        keep(states_of(learner), folder / f"first-{number}.pt", rank)
        dist.barrier()
        learner = start_learner(pipeline, run, zero_stage=3)
        assert learner.load(folder / f"checkpoint-{number}") == 1
        learner.train(rolled[1])
    parameters, modules = list(learner.policy.network.parameters()), learner.policy.network.modules()
    total, largest = sum(p.ds_numel for p in parameters), max(map(own_numbers, modules))
    held = sum(p.ds_tensor.numel() for p in parameters)
    assert held <= total / dist.get_world_size() + len(parameters), "slices are padded by less than a number each"
    assert 0 < peak.numbers <= largest < total / 10, "one layer at a time, while opening and in every pass"
    return learner


def start_learner(pipeline: Path, run: dict, *, zero_stage: int, is_resized: bool = False) -> Learner:
    model = small_config(pipeline).model.model_copy(update={"precision": run["precision"]})
    config = align_config(pipeline, **{n: v for n, v in run.items() if n != "precision"}, zero_stage=zero_stage)
    is_whole, base = run["trainable"] == "full", None
    if zero_stage == 3:
        policy = load_split_policy(model, is_trained_whole=is_whole)
        base = load_split_policy(model).network if is_whole else None
    else:
        policy = load_policy(model, is_trained_whole=is_whole)
    micro_batches = 2 * algorithm_of(config).passes_per_batch(config)
    return Learner(policy, config, micro_batches=micro_batches, seed=0, base=base, is_resized=is_resized)


def states_of(learner: Learner) -> dict[str, dict[str, torch.Tensor]]:
    """All ranks call it."""
    return {
        "weights": learner.weights(),
        "averaged": learner.averaged_weights(),
        "acting": learner.acting_weights(),
    }


def keep(states: dict, path: Path, rank: int) -> None:
    if rank == 0:
        torch.save(states, path)


def assert_equal_results(folder: Path, runs: list[dict]) -> None:
    for number, run in enumerate(runs):
        whole, split = (torch.load(folder / f"stage-{s}-{number}.pt", weights_only=True) for s in (0, 3))
        for kind, state in split.items():
            assert whole[kind].keys() == state.keys(), (run, kind)
            for name, tensor in state.items():
                torch.testing.assert_close(tensor, whole[kind][name], atol=2e-5, rtol=0)
        assert any(not torch.equal(split["weights"][n], t) for n, t in whole["begun"].items()), run


def own_numbers(module: torch.nn.Module) -> int:
    return sum(p.ds_numel for p in module.parameters(recurse=False))


class Peak:
    """Most numbers of parameters that are in memory at once, slices of other ranks' share left out."""

    def __init__(self) -> None:
        self.numbers, self._parameters = 0, []

    def __enter__(self) -> "Peak":
        self._handles = [
            register_module_parameter_registration_hook(self._see),
            register_module_forward_hook(lambda *_: self._count()),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, module: torch.nn.Module, name: str, parameter: Any) -> None:
        before = module._parameters.get(name)
        # A frozen weight takes the place of one without memory; those of a text encoder are not frozen yet.
        if before is not None and before.is_meta and not parameter.requires_grad:
            self._parameters.append(parameter)
            self._count()

    def _count(self) -> None:
        self.numbers = max(self.numbers, sum(map(_numbers, self._parameters)))


def _numbers(parameter: Any) -> int:
    # Parameters gathered together share a buffer; one that only shows its shape has a buffer of one number.
    return min(parameter.data.numel(), parameter.untyped_storage().nbytes() // parameter.itemsize)
