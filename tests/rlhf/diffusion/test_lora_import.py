"""LoRA files of other tools: all of a file becomes a policy, or it is refused with the names that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.lora_import import import_lora
from rlhf.diffusion.policy import load_policy, make_trainable
from rlhf.diffusion.policy_weights import read_trainable_state, save_policy
from rlhf.diffusion.trained_weights import trainable_state
from rlhf.errors import UserError

TARGETS = ("to_q", "to_v", "to_out.0")
ALPHA = 3.0
"""Not the rank, which is 4, so that a scale that is lost shows."""


def layers_of(pipeline: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Random LoRA layers in diffusers' names."""
    policy = load_policy(ModelConfig(path=str(pipeline)))
    make_trainable(policy, "lora", rank=4, targets=TARGETS, seed=0)
    state = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in trainable_state(policy.network).items()}
    save_policy(policy.family, state, folder, version=1, trainable="lora", base="x")
    return load_file(folder / "pytorch_lora_weights.safetensors")


def as_kohya(layers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {}
    for name, tensor in layers.items():
        module, _, part = name.removeprefix("unet.").partition(".lora_")
        stem = "lora_unet_" + module.replace(".", "_")
        named[f"{stem}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = tensor
        named[f"{stem}.alpha"] = torch.tensor(ALPHA)
    return named


def output(network: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, text = (torch.randn(size, generator=generator) for size in ((1, 9, 8, 8), (1, 16, 32)))
    with torch.no_grad():
        return network(latents, torch.tensor([500]), text).sample


def output_of_policy(pipeline: Path, folder: Path) -> torch.Tensor:
    return output(load_policy(ModelConfig(path=str(pipeline)), folder).network)


@pytest.mark.parametrize("convert", [dict, as_kohya], ids=["diffusers", "kohya"])
def test_a_file_acts_as_it_does_in_diffusers(small_pipeline: Path, tmp_path: Path, convert: Any) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(convert(layers_of(small_pipeline, tmp_path / "own")), file)
    assert import_lora(ModelConfig(path=str(small_pipeline)), file, tmp_path / "policy") > 10
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(small_pipeline)
    base = output(pipeline.unet)
    pipeline.load_lora_weights(str(file))
    torch.testing.assert_close(output_of_policy(small_pipeline, tmp_path / "policy"), output(pipeline.unet))
    assert not torch.allclose(output(pipeline.unet), base, atol=1e-3)


def test_a_file_of_peft_acts_as_it_does_there(small_pipeline: Path, tmp_path: Path) -> None:
    unet = StableDiffusionInpaintPipeline.from_pretrained(small_pipeline).unet
    settings = LoraConfig(r=4, lora_alpha=ALPHA, target_modules=list(TARGETS), init_lora_weights=False)
    adapted = get_peft_model(unet, settings).eval()
    adapted.save_pretrained(tmp_path / "peft")
    file = tmp_path / "peft" / "adapter_model.safetensors"
    import_lora(ModelConfig(path=str(small_pipeline)), file, tmp_path / "policy")
    torch.testing.assert_close(output_of_policy(small_pipeline, tmp_path / "policy"), output(adapted))
    (tmp_path / "peft" / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="adapter_config.json: cannot be read, but holds the scale"):
        import_lora(ModelConfig(path=str(small_pipeline)), file, tmp_path / "other")


def test_training_goes_on_from_an_imported_file(small_pipeline: Path, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(as_kohya(layers_of(small_pipeline, tmp_path / "own")), file)
    import_lora(ModelConfig(path=str(small_pipeline)), file, tmp_path / "policy")
    policy = load_policy(ModelConfig(path=str(small_pipeline)))
    make_trainable(policy, "lora", rank=4, targets=TARGETS, seed=0)
    assert (
        read_trainable_state(tmp_path / "policy", policy.family, "lora").keys()
        == trainable_state(policy.network).keys()
    )
    assert json.loads((tmp_path / "policy" / "manifest.json").read_text())["base_model"] == str(small_pipeline)


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ("text_encoder.layers.0.self_attn.q_proj.lora_A.weight", "outside the unet: text_encoder.layers.0"),
        ("unet.no_such_block.to_q.lora_A.weight", "does not fit this base model: no_such_block.to_q"),
        ("unet.mid_block.attentions.0.to_q.hada_w1_a", "other tensors than LoRA layers: unet.mid_block"),
        ("unet.mid_block.attentions.0.to_q.dora_scale", "other tensors than LoRA layers: unet.mid_block"),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", "lora_te_text_model"),
    ],
)
def test_a_file_that_does_not_fit_entirely_is_refused_with_the_names(
    small_pipeline: Path, tmp_path: Path, added: str, named: str
) -> None:
    layers = layers_of(small_pipeline, tmp_path / "own")
    more = {added: torch.ones(4, 32), added.replace("lora_A", "lora_B"): torch.ones(32, 4)}
    save_file(layers | more, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=named):
        import_lora(ModelConfig(path=str(small_pipeline)), tmp_path / "lora.safetensors", tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_kohyas_text_encoder_layers_are_refused(small_pipeline: Path, tmp_path: Path) -> None:
    layers = as_kohya(layers_of(small_pipeline, tmp_path / "own"))
    stem = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    layers |= {f"{stem}.lora_down.weight": torch.ones(4, 32), f"{stem}.lora_up.weight": torch.ones(32, 4)}
    save_file(layers | {f"{stem}.alpha": torch.tensor(4.0)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="outside the unet: text_encoder"):
        import_lora(ModelConfig(path=str(small_pipeline)), tmp_path / "lora.safetensors", tmp_path / "policy")


def test_the_lora_of_another_model_is_refused(small_pipeline: Path, small_xl_pipeline: Path, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(layers_of(small_xl_pipeline, tmp_path / "own"), file)
    with pytest.raises(UserError, match=r"lora.safetensors: does not (fit|load onto)"):
        import_lora(ModelConfig(path=str(small_pipeline)), file, tmp_path / "policy")


@pytest.mark.parametrize("content", [b"", b"half a file"])
def test_a_file_that_is_no_safetensors_is_refused(small_pipeline: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lora.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="lora.safetensors: cannot be read"):
        import_lora(ModelConfig(path=str(small_pipeline)), tmp_path / "lora.safetensors", tmp_path / "policy")
