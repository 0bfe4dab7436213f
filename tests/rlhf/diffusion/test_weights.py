"""Policy folders that are damaged or of another model are refused wherever they are loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_parts import save_moved_policy, small_prompts

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.policy import Policy, load_policy, make_trainable
from rlhf.diffusion.policy_weights import (
    check_start,
    load_adapter,
    merge_weights,
    open_network,
    read_trainable_state,
    save_policy,
)
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trained_weights import trainable_state
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.errors import UserError

FILES = {"lora": "pytorch_lora_weights.safetensors", "full": "unet/diffusion_pytorch_model.safetensors"}
PLAN = RolloutPlan(num_inference_steps=2, eta=0.0, stochastic_steps=frozenset())


def images_of(policy: Policy) -> torch.Tensor:
    return rollout(policy, small_prompts(1), PLAN, sample_indices=[0], seed_key=(0,)).images


def flip_a_bit(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def drop_a_tensor(file: Path) -> None:
    save_file(dict(list(load_file(file).items())[1:]), file)


def add_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    name = next(iter(tensors)).replace("conv", "stray").replace("to_", "stray_")
    save_file(tensors | {f"{name}.more": torch.zeros(2)}, file)


def ways_to_load(pipeline: Path, folder: Path, trainable: str) -> list[Callable[[], object]]:
    """Merging (evaluation, candidates), serving beside others, and starting or resuming training."""
    config = ModelConfig(path=str(pipeline))
    family = load_policy(config).family
    serve = open_network if trainable == "full" else lambda place, model: load_adapter(model, place, "served")
    return [
        lambda: load_policy(config, folder),
        lambda: merge_weights(family, folder),
        lambda: serve(folder, family),
        lambda: check_start(folder, trainable),
        lambda: read_trainable_state(folder, family, trainable),
    ]


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, drop_a_tensor, add_a_tensor])
@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_damaged_weights_are_refused_wherever_they_are_loaded(
    small_pipeline: Path, tmp_path: Path, trainable: str, damage: Callable[[Path], None]
) -> None:
    folder = save_moved_policy(small_pipeline, tmp_path / "policy", version=1, trainable=trainable)
    damage(folder / FILES[trainable])
    for load in ways_to_load(small_pipeline, folder, trainable):
        with pytest.raises(UserError, match=r"policy: its weights .*safetensors"):
            load()


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_another_checksum_in_the_manifest_is_refused_wherever_a_policy_is_loaded(
    small_pipeline: Path, tmp_path: Path, trainable: str
) -> None:
    folder = save_moved_policy(small_pipeline, tmp_path / "policy", version=1, trainable=trainable)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"checksum": 64 * "0"}))
    for load in ways_to_load(small_pipeline, folder, trainable):
        with pytest.raises(UserError, match="policy: its weights are not those of its manifest"):
            load()


def test_the_policy_of_another_model_is_refused_with_the_names_that_do_not_fit(
    small_pipeline: Path, small_xl_pipeline: Path, tmp_path: Path
) -> None:
    """The SDXL network has modules that the other lacks, and shapes that it does not have."""
    lora = save_moved_policy(small_xl_pipeline, tmp_path / "lora", version=1)
    whole = save_moved_policy(small_xl_pipeline, tmp_path / "full", version=1, trainable="full")
    policy = load_policy(ModelConfig(path=str(small_pipeline)))
    family, before = policy.family, images_of(policy)
    with pytest.raises(UserError, match=r"lora: pytorch_lora_weights.safetensors: does not (fit|load onto)"):
        load_adapter(family, lora, "other")
    with pytest.raises(UserError, match="full: does not fit this base model: add_embedding"):
        open_network(whole, family)
    assert torch.equal(images_of(policy), before), "the network is as it was"


def save_layers(policy: Policy, folder: Path, change: Callable[[str], str]) -> Path:
    """A policy folder, sound by its checksum, whose layers have other names."""
    make_trainable(policy, "lora", rank=2, targets=("to_q",), seed=0)
    state = trainable_state(policy.network)
    save_policy(policy.family, state, folder, version=1, trainable="lora", base="x")
    tensors = {change(name): tensor for name, tensor in load_file(folder / FILES["lora"]).items()}
    save_file(tensors, folder / FILES["lora"])
    from rlhf.diffusion.policy_weights import _parameter_name, _read_lora
    from rlhf.storage.checksum import checksum

    digest = checksum({_parameter_name(layer): tensor for layer, tensor in _read_lora(folder).items()})
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"checksum": digest}))
    return folder


def test_layers_that_bind_to_nothing_are_named(small_pipeline: Path, tmp_path: Path) -> None:
    config = ModelConfig(path=str(small_pipeline))
    folder = save_layers(load_policy(config), tmp_path / "some", lambda name: name.replace("mid_block", "odd_block"))
    with pytest.raises(UserError, match=r"does not fit this base model: odd_block\S*to_q"):
        load_policy(config, folder)
    folder = save_layers(load_policy(config), tmp_path / "all", lambda name: name.replace("to_q", "to_odd"))
    with pytest.raises(UserError, match=r"all: pytorch_lora_weights.safetensors: does not"):
        load_policy(config, folder)


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_weights_that_are_not_finite_are_refused_when_they_are_loaded(
    small_pipeline: Path, tmp_path: Path, trainable: str
) -> None:
    policy = load_policy(ModelConfig(path=str(small_pipeline)))
    make_trainable(policy, trainable, rank=2, targets=("to_q",), seed=0)
    state = trainable_state(policy.network)
    next(iter(state.values())).view(-1)[0] = float("inf")
    folder = tmp_path / "policy"
    save_policy(policy.family, state, folder, version=1, trainable=trainable, base="x")
    for load in ways_to_load(small_pipeline, folder, trainable):
        with pytest.raises(UserError, match=r"policy: .*safetensors: not finite: "):
            load()
