from pathlib import Path

import diffusers
import pytest
import torch
from family_cases import CASES
from family_painting import noise_for, paint, prompt_of
from small_families import small_fill_pipeline, small_sd3_pipeline

from rlhf.alignment.disk_need import count_trained
from rlhf.config.run_config import AlignConfig, ModelConfig, RunConfig
from rlhf.diffusion.families.family import ModelFamily
from rlhf.diffusion.families.open_family import MODULES
from rlhf.diffusion.policy import export_policy, load_policy, make_trainable, plan_steps
from rlhf.diffusion.policy_weights import save_policy
from rlhf.diffusion.trained_weights import trainable_state
from rlhf.errors import UserError


@pytest.fixture(scope="module", params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("pipeline")
    CASES[request.param].build().save_pretrained(path)
    return request.param, path


def model(path: Path) -> ModelConfig:
    return ModelConfig(path=str(path), device="cpu")


def test_a_folder_is_opened_by_its_class_and_channels(folder: tuple[str, Path]) -> None:
    name, path = folder
    policy = load_policy(model(path))
    assert type(policy.family).__name__ == name.replace("XL", "")
    native = policy.family.native_cells
    ours, planned = policy.family.schedule(5, (native, native)), plan_steps(model(path), 5)
    assert torch.equal(ours.timesteps, planned.timesteps), "the checks before a run see the steps that it takes"


def test_trained_adapters_are_counted_without_weights(folder: tuple[str, Path]) -> None:
    config, policy = AlignConfig(lora_rank=4), load_policy(model(folder[1]))
    make_trainable(policy, "lora", rank=4, targets=None, seed=0)
    assert count_trained(str(folder[1]), config) == sum(t.numel() for t in trainable_state(policy.network).values())


def test_a_saved_lora_gives_plain_diffusers_the_policys_images(folder: tuple[str, Path], tmp_path: Path) -> None:
    """Painted by the family on a pipeline that diffusers alone has loaded the LoRA into."""
    name, path = folder
    policy = load_policy(model(path))
    make_trainable(policy, "lora", rank=4, targets=None, seed=0)
    state = {n: t + 0.2 * torch.randn_like(t) for n, t in trainable_state(policy.network).items()}
    save_policy(policy.family, state, tmp_path / "policy", version=1, trainable="lora", base=str(path))
    latents = paint_latents(load_policy(model(path), tmp_path / "policy").family)
    plain = diffusers.DiffusionPipeline.from_pretrained(path)
    plain.load_lora_weights(tmp_path / "policy")
    other = load_policy(model(path))
    base = paint_latents(other.family)
    other.family.pipeline, other.family.network = plain, getattr(plain, other.family.network_name)
    torch.testing.assert_close(paint_latents(other.family), latents, atol=1e-4, rtol=0)
    assert float((latents - base).abs().max()) > 1e-2, f"{name}: the adapter changes what is painted"


def test_an_exported_folder_opens_in_plain_diffusers(folder: tuple[str, Path], tmp_path: Path) -> None:
    path = folder[1]
    policy = load_policy(model(path))
    make_trainable(policy, "full", rank=4, targets=None, seed=0)
    state = {n: t + 0.01 * torch.randn_like(t) for n, t in trainable_state(policy.network).items()}
    save_policy(policy.family, state, tmp_path / "policy", version=1, trainable="full", base=str(path))
    out = export_policy(model(path), tmp_path / "policy", tmp_path / "out")
    plain = diffusers.DiffusionPipeline.from_pretrained(out)
    assert all(torch.equal(t, state[n]) for n, t in getattr(plain, policy.family.network_name).named_parameters())


def paint_latents(family: ModelFamily) -> torch.Tensor:
    prompt = prompt_of(64, 64, seed=5)
    return paint(family, prompt, noise_for(family, prompt, seed=1), "a cat", steps=3)


def test_other_classes_and_channels_are_refused_with_those_supported(tmp_path: Path) -> None:
    kontext = tmp_path / "kontext"
    kontext.mkdir()
    (kontext / "model_index.json").write_text('{"_class_name": "FluxKontextPipeline"}')
    with pytest.raises(UserError, match=f"class FluxKontextPipeline; supported are {', '.join(MODULES)}"):
        load_policy(model(kontext))
    control = small_sd3_pipeline(in_channels=16)
    control.save_pretrained(tmp_path / "sd3")
    config = tmp_path / "sd3" / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 16', '"in_channels": 17'))
    with pytest.raises(UserError, match=r"reads 17 channels; supported are 33 \(latents, mask and masked image\), 16"):
        load_policy(model(tmp_path / "sd3"))


def test_a_scheduler_of_another_kind_is_refused_by_class(tmp_path: Path) -> None:
    pipeline = small_fill_pipeline()
    pipeline.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its scheduler of class FlowMatchHeunDiscreteScheduler; supported is"):
        plan_steps(RunConfig(model=model(tmp_path)).model, 4)


def test_encoding_is_deterministic(folder: tuple[str, Path]) -> None:
    policy = load_policy(model(folder[1]))
    first, again = (policy.family.encode_prompts([prompt_of(64, 64, seed=1)])[0] for _ in range(2))
    assert torch.equal(first, again)
