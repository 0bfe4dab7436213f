"""CLIP as a backbone: what is trained, what it sees, and its weights as a whole."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_backbones import batch, make_model, tiny_tower

from rlhf.errors import UserError
from rlhf.rewards.learned.backbones.clip_backbone import ClipBackbone
from rlhf.rewards.learned.feature_network import build_backbone
from rlhf.rewards.learned.reward_folder import load_reward


@pytest.mark.parametrize("layers", [4, 10])
def test_clip_trains_only_the_last_30_percent_of_its_layers(layers: int) -> None:
    backbone = ClipBackbone(tiny_tower(layers))
    embedding = backbone(*batch(size=24))
    assert embedding.shape == (6, backbone.output_dim) == (6, 32)
    embedding.square().mean().backward()
    trained = [
        number
        for number in range(layers)
        if any(f"layers.{number}." in name and p.grad is not None for name, p in backbone.named_parameters())
    ]
    assert trained == list(range(round(0.7 * layers), layers))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_frozen_share_counts_layers_from_the_first_and_takes_what_is_below_them(share: float) -> None:
    trained = {name for name, p in ClipBackbone(tiny_tower(10), share).named_parameters() if p.requires_grad}
    layers = {n for n in range(10) if any(f"layers.{n}." in name for name in trained)}
    assert layers == set(range(round(10 * share), 10))
    assert any("embeddings" in name or "pre_layrnorm" in name for name in trained) == (share == 0)
    assert any("post_layernorm" in name for name in trained) == (share < 1)


def test_clip_embeds_the_inpainting_and_the_masked_image() -> None:
    backbone, (images, masks) = ClipBackbone(tiny_tower()).eval(), batch()
    with torch.no_grad():
        base, other = backbone(images, masks), backbone(torch.where(masks > 0, -images, images), masks)
    assert torch.equal(base[:, 16:], other[:, 16:]), "the masked image does not hold the hole"
    assert not torch.allclose(base[:, :16], other[:, :16])


def test_a_clip_reward_is_saved_and_opened_again(tmp_path: Path) -> None:
    tiny_tower().save_pretrained(tmp_path / "clip")
    model = make_model(str(tmp_path / "clip"))
    model.save(tmp_path / "reward")
    assert torch.equal(load_reward(tmp_path / "reward").score(*batch()).reward, model.score(*batch()).reward)


def test_a_clip_tower_that_lacks_a_tensor_is_not_filled_with_random_numbers(tmp_path: Path) -> None:
    tiny_tower().save_pretrained(tmp_path / "clip")
    file = tmp_path / "clip" / "model.safetensors"
    save_file(dict(list(load_file(file).items())[:-1]), file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 tensors are missing, such as "):
        build_backbone(str(tmp_path / "clip"))
