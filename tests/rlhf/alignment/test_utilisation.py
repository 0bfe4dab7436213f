"""Utilisation of devices: FLOPs against counts by hand, and traces of named ranges."""

import json
from pathlib import Path

import pytest
import torch
from small_parts import small_config, small_prompts
from torch import nn
from torch.profiler import record_function

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.profiling import profiled
from rlhf.alignment.utilisation import PassFlops, count_passes, device_rate, measure_rate, peak_memory, utilisation
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trajectories import Recording


def rolled_out(policy: Policy, config: object) -> Recording:
    plan = algorithm_of(config).plan_rollout(config, 0, 0)
    return rollout(policy, small_prompts(1), plan, sample_indices=range(2), seed_key=(0,)).trajectories


def flops_by_hand(network: nn.Module, run: object) -> int:
    """Two per weight and position of convolutions and linear layers, and of attention's two products."""
    total = 0

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += 2 * module.weight.numel() * output.shape[-2] * output.shape[-1]
        else:
            total += 2 * module.weight.numel() * output[..., 0].numel()

    def attend(module: nn.Module, arguments: tuple, given: dict, output: torch.Tensor) -> None:
        nonlocal total
        queries, (words, text) = arguments[0].shape[1], (arguments[0].shape[1], given.get("encoder_hidden_states"))
        total += 2 * 2 * queries * (words if text is None else text.shape[1]) * module.inner_dim

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
        elif type(module).__name__ == "Attention":
            module.register_forward_hook(attend, with_kwargs=True)
    run()
    return total


def test_flops_of_a_pass_are_those_counted_by_hand(small_pipeline: Path) -> None:
    config = small_config(small_pipeline, trainable="full")
    policy = load_policy(config.model)
    recording = rolled_out(policy, config.align)
    found = count_passes(policy, config.model, config.align, recording)
    latents, condition = recording.latents[0][:1], recording.condition[:1]
    expected = flops_by_hand(policy.network, lambda: policy.predict(latents, torch.zeros(1), condition))
    assert found.forward == found.base == expected > 1e6
    assert found.backward == pytest.approx(2 * found.forward, rel=0.05)


def test_adapters_cost_more_forward_and_frozen_weights_less_backward(small_pipeline: Path) -> None:
    config = small_config(small_pipeline)
    policy = load_policy(config.model)
    recording = rolled_out(policy, config.align)
    lora = count_passes(policy, config.model, config.align, recording)
    whole = count_passes(policy, config.model, small_config(small_pipeline, trainable="full").align, recording)
    assert lora.base == whole.forward < lora.forward
    assert lora.backward < 2 * lora.forward


def test_a_rate_that_is_given_is_not_measured(small_pipeline: Path) -> None:
    config = small_config(small_pipeline)
    policy = load_policy(config.model)
    assert device_rate(config.cluster.model_copy(update={"peak_tflops": 989.0}), policy) == 989e12
    assert 1e8 < device_rate(config.cluster, policy) < 1e14


def test_utilisation_is_the_share_of_the_measured_rate_over_all_processes_of_a_role() -> None:
    flops = PassFlops(forward=10, base=8, backward=20)
    images = {"sampler_forward_images": 40.0, "learner_forward_images": 6, "base_forward_images": 6}
    metrics = images | {"backward_images": 6, "train_s": 2.0, "rollout_s": 4.0}
    rates, processes = {"learner": 57.0, "sampler": 25.0}, {"learner": 2, "sampler": 4}
    found = utilisation(metrics, flops, rates=rates, processes=processes)
    assert found == {"learner_utilisation": 6 * 38 / (2 * 2 * 57), "sampler_utilisation": 40 * 10 / (4 * 4 * 25)}
    assert utilisation(metrics, flops, rates={"learner": 57.0, "sampler": 0.0}, processes=processes).keys() == {
        "learner_utilisation"
    }, "a replay has no samplers"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_rate_of_a_device_is_that_of_some_arithmetic(precision: str) -> None:
    assert 1e8 < measure_rate(torch.device("cpu"), precision) < 1e14
    assert 1e7 < peak_memory(torch.device("cpu")) < 1e12


def test_a_trace_is_json_with_the_ranges_that_were_named(small_pipeline: Path, tmp_path: Path) -> None:
    config = small_config(small_pipeline)
    policy = load_policy(config.model)
    with profiled(tmp_path, 3, "sampler-0"), record_function("all"):
        rolled_out(policy, config.align)
    trace = json.loads((tmp_path / "profile" / "update-000003-sampler-0.pt.trace.json").read_text())
    names = {event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"}
    assert {"all", "denoise, step 1", "decode", "aten::convolution"} <= names
