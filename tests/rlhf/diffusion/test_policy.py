import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from small_parts import small_config, small_prompts

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.policy import Policy, export_policy, load_policy, make_trainable
from rlhf.diffusion.policy_manifest import list_policies, locate_policy
from rlhf.diffusion.policy_weights import save_policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trained_weights import load_trainable_state, trainable_state, without_adapters
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.errors import UserError
from rlhf.storage.checksum import checksum

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj_in", "proj_out")
PLAN = RolloutPlan(num_inference_steps=3, eta=0.0, stochastic_steps=frozenset())


def moved_policy(pipeline: Path, trainable: str = "lora") -> Policy:
    """A policy whose trained tensors are all off their start."""
    policy = load_policy(ModelConfig(path=str(pipeline)))
    make_trainable(policy, trainable, rank=4, targets=TARGETS, seed=0)
    state = {n: t + 0.05 * torch.randn_like(t) for n, t in trainable_state(policy.network).items()}
    load_trainable_state(policy.network, state)
    return policy


def images_of(policy: Policy) -> torch.Tensor:
    return rollout(policy, small_prompts(2), PLAN, sample_indices=[0], seed_key=(0,)).images


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_a_saved_policy_paints_what_the_trained_one_paints(
    small_pipeline: Path, tmp_path: Path, trainable: str
) -> None:
    policy = moved_policy(small_pipeline, trainable)
    save_policy(policy.family, trainable_state(policy.network), tmp_path, version=7, trainable=trainable, base="x")
    again = load_policy(ModelConfig(path=str(small_pipeline)), tmp_path)
    assert again.version == 7
    # The files are float32; a value between two levels of 255 may round to either.
    torch.testing.assert_close(images_of(again), images_of(policy), atol=1 / 127, rtol=0)
    assert not torch.equal(images_of(again), images_of(load_policy(ModelConfig(path=str(small_pipeline)))))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files), "other users may serve it"


def test_plain_diffusers_applies_every_lora_module(small_pipeline: Path, tmp_path: Path) -> None:
    policy = moved_policy(small_pipeline)
    state = trainable_state(policy.network)
    save_policy(policy.family, state, tmp_path, version=1, trainable="lora", base="x")
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(small_pipeline, safety_checker=None)
    pipeline.load_lora_weights(tmp_path)
    loaded = {n: p for n, p in pipeline.unet.named_parameters() if "lora_" in n}
    assert len(loaded) == len(state) > 20
    x, t, e = torch.randn(1, 9, 8, 8), torch.tensor([500]), policy.text.embedding
    with torch.no_grad():
        torch.testing.assert_close(pipeline.unet(x, t, e).sample, policy.network(x, t, e).sample, atol=1e-5, rtol=1e-5)


def test_an_exported_folder_needs_no_adapter(small_pipeline: Path, tmp_path: Path) -> None:
    policy = moved_policy(small_pipeline)
    save_policy(policy.family, trainable_state(policy.network), tmp_path / "p", version=1, trainable="lora", base="x")
    config = ModelConfig(path=str(small_pipeline))
    exported = load_policy(ModelConfig(path=str(export_policy(config, tmp_path / "p", tmp_path / "e"))))
    assert not any("lora" in n for n, _ in exported.network.named_parameters())
    torch.testing.assert_close(images_of(exported), images_of(policy), atol=2 / 127, rtol=0)


def test_fresh_adapters_are_the_base_policy_and_can_be_turned_off(small_pipeline: Path) -> None:
    base = images_of(load_policy(ModelConfig(path=str(small_pipeline))))
    fresh = load_policy(ModelConfig(path=str(small_pipeline)))
    make_trainable(fresh, "lora", rank=4, targets=TARGETS, seed=0)
    assert torch.equal(images_of(fresh), base)
    moved = moved_policy(small_pipeline)
    assert not torch.equal(images_of(moved), base)
    with without_adapters(moved.network):
        torch.testing.assert_close(images_of(moved), base, atol=1e-6, rtol=0)
    assert not torch.equal(images_of(moved), base)


def test_checksum_changes_with_a_single_bit() -> None:
    state = {"a": torch.zeros(3), "b": torch.ones(2)}
    other = {"a": torch.zeros(3), "b": torch.tensor([1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))])}
    assert checksum(state) == checksum(dict(reversed(state.items())))
    assert checksum(state) != checksum(other)


def test_weights_of_another_model_are_refused(small_pipeline: Path) -> None:
    policy = moved_policy(small_pipeline)
    with pytest.raises(ValueError, match="do not fit"):
        load_trainable_state(policy.network, {"conv_in.weight": torch.zeros(1)})


def test_a_lora_target_that_is_no_module_is_named(small_pipeline: Path) -> None:
    policy = load_policy(ModelConfig(path=str(small_pipeline)))
    with pytest.raises(UserError, match=r"lora_targets.*to_qq"):
        make_trainable(policy, "lora", rank=4, targets=("to_q", "to_qq"), seed=0)


@pytest.mark.parametrize(
    "missing", ["unet", "vae/config.json", "model_index.json", "unet/diffusion_pytorch_model.safetensors"]
)
def test_an_incomplete_model_folder_is_one_clear_error(small_pipeline: Path, tmp_path: Path, missing: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small_pipeline, broken)
    path = broken / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match="broken"):
        load_policy(ModelConfig(path=str(broken)))


def test_truncated_weights_are_one_clear_error(small_pipeline: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small_pipeline, broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="broken"):
        load_policy(ModelConfig(path=str(broken)))


def test_a_policy_folder_without_manifest_does_not_exist(small_pipeline: Path, tmp_path: Path) -> None:
    policy = moved_policy(small_pipeline)
    state = trainable_state(policy.network)
    for version in (1, 2):
        folder = tmp_path / f"policy-{version:06d}"
        save_policy(policy.family, state, folder, version=version, trainable="lora", base=str(small_pipeline))
    assert [f.name for f in list_policies(tmp_path)] == ["policy-000001", "policy-000002"]
    config, adapter = locate_policy(small_config(small_pipeline).model, tmp_path)
    assert (config.path, adapter) == (str(small_pipeline), tmp_path / "policy-000002")
    (tmp_path / "policy-000002" / "manifest.json").unlink()
    assert [f.name for f in list_policies(tmp_path)] == ["policy-000001"]
    with pytest.raises(UserError, match="manifest"):
        load_policy(ModelConfig(path=str(small_pipeline)), tmp_path / "policy-000002")


def test_the_manifest_states_version_and_checksum(small_pipeline: Path, tmp_path: Path) -> None:
    policy = moved_policy(small_pipeline)
    state = trainable_state(policy.network)
    save_policy(policy.family, state, tmp_path, version=3, trainable="lora", base="tiny")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["policy_version"] == 3
    assert manifest["checksum"] == checksum(state)
