"""Weights on their way to samplers: in chunks, in bf16 where that changes nothing, and proved by who holds them."""

from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from align_runs import with_cluster
from small_learner import batches
from small_parts import small_config

from actors import weight_sync
from actors.remote_sampler import read_weights
from actors.rollout_sampler import RolloutSampler
from actors.weight_sync import WeightsNotice, find_fault
from rlhf.alignment.learner import Learner
from rlhf.config.run_config import RunConfig
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.probe import probe_log_prob
from rlhf.diffusion.trained_weights import as_array

SMALL_CHUNK = 100_000


@pytest.fixture(autouse=True)
def _store(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store in this process, which gives what it holds to be read only."""

    def put(chunk: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        kept = {name: array.copy() for name, array in chunk.items()}
        for array in kept.values():
            array.setflags(write=False)
        return kept

    monkeypatch.setattr(weight_sync, "CHUNK_BYTES", SMALL_CHUNK)
    monkeypatch.setattr(ray, "put", put)
    monkeypatch.setattr(ray, "get", lambda reference: reference)


def config_of(pipeline: Path, precision: str = "bf16", **align: object) -> RunConfig:
    config = small_config(pipeline, **align)
    return config.model_copy(update={"model": config.model.model_copy(update={"precision": precision})})


def open_learner(config: RunConfig) -> Learner:
    policy = load_policy(config.model, is_trained_whole=config.align.trainable == "full")
    return Learner(policy, config.align, micro_batches=4, seed=0)


def trained_bytes(sampler: RolloutSampler) -> int:
    return sum(p.nbytes for p in sampler.policy.network.parameters() if p.requires_grad)


@pytest.mark.usefixtures("process_group")
def test_a_whole_network_travels_in_half_the_bytes_and_samples_to_the_bit_what_the_learner_computes(
    small_pipeline: Path,
) -> None:
    config = config_of(small_pipeline, trainable="full", kl_weight=0.0)
    learner, sampler = open_learner(config), RolloutSampler(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.policy.network.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    probe = probe_log_prob(learner.policy, config.align)
    whole, halved = (WeightsNotice.publish(learner.acting_weights(may_round=r), 1, probe) for r in (False, True))
    assert halved.size_bytes < 0.55 * whole.size_bytes
    for notice in (halved, whole, halved):
        ack = sampler.load_weights(notice)
        assert find_fault(ack, notice, 0.0) is None
        assert ack.probe == probe
        assert trained_bytes(sampler) == notice.size_bytes, "held as they came"
    assert learner.train(batches(sampler.policy, config.align))["ratio_error"] == 0.0


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("precision", "trainable"), [("fp32", "full"), ("bf16", "lora")])
def test_what_rounding_would_change_travels_in_float32(small_pipeline: Path, precision: str, trainable: str) -> None:
    config = config_of(small_pipeline, precision, trainable=trainable, kl_weight=0.0, lora_targets=("to_q",))
    weights = open_learner(config).acting_weights(may_round=True)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("precision", "weights_in", "is_rounded"),
    [("fp32", "auto", False), ("bf16", "auto", True), ("bf16", "fp32", False)],
)
def test_rollouts_alone_start_from_the_whole_network_that_a_learner_would_publish(
    small_pipeline: Path, precision: str, weights_in: str, is_rounded: bool
) -> None:
    config = with_cluster(config_of(small_pipeline, precision, trainable="full", kl_weight=0.0), weights_in=weights_in)
    ours = open_learner(config).acting_weights(may_round=weights_in == "auto")
    theirs = read_weights(config, None, None)
    assert WeightsNotice.publish(theirs, 0).checksum == WeightsNotice.publish(ours, 0).checksum
    assert {tensor.dtype for tensor in theirs.values()} == {torch.float32} | ({torch.bfloat16} if is_rounded else set())


def test_chunks_hold_each_tensor_once_and_stay_small(small_pipeline: Path) -> None:
    network = load_policy(small_config(small_pipeline).model).network
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    notice = WeightsNotice.publish(weights, 0)
    chunks: list[dict[str, np.ndarray]] = notice.weights
    assert len(chunks) > 3
    assert [name for chunk in chunks for name in chunk] == list(weights)
    assert all(len(chunk) == 1 or sum(array.nbytes for array in chunk.values()) <= SMALL_CHUNK for chunk in chunks)
    assert sum(array.nbytes for chunk in chunks for array in chunk.values()) == notice.size_bytes
    assert WeightsNotice.publish({}, 0).weights == []


def test_a_sampler_that_lacks_a_chunk_or_holds_another_bit_or_precision_proves_nothing(small_pipeline: Path) -> None:
    config = config_of(small_pipeline, "fp32", trainable="full")
    sampler = RolloutSampler(config)
    network = load_policy(config.model).network
    weights = {name: 1.5 * parameter.detach() for name, parameter in network.named_parameters()}
    notice = WeightsNotice.publish(weights, 2)
    *others, last = notice.weights
    lacking = WeightsNotice(version=2, weights=others, checksum=notice.checksum, size_bytes=0)
    assert find_fault(sampler.load_weights(lacking), notice, 0.0) is not None
    assert find_fault(sampler.load_weights(notice), notice, 0.0) is None
    name, array = next(iter(last.items()))
    flipped = array.copy()
    flipped.view(np.uint8).flat[5] ^= 1
    changed = WeightsNotice(version=2, weights=[*others, last | {name: flipped}], checksum="", size_bytes=0)
    assert find_fault(sampler.load_weights(changed), notice, 0.0) is not None
    halved = WeightsNotice.publish({name: tensor.bfloat16() for name, tensor in weights.items()}, 2)
    assert find_fault(sampler.load_weights(halved), halved, 0.0) is not None, "it computes in fp32"


def test_bfloat16_travels_as_its_bits() -> None:
    tensor = torch.tensor([[1.5, -0.0], [float("nan"), 3e38]], dtype=torch.bfloat16)
    array = as_array(tensor)
    assert array.dtype == np.uint16
    assert array.tolist() == tensor.view(torch.uint16).tolist()
