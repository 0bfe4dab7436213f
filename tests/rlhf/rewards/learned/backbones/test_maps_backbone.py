"""Networks whose maps are pooled by the hole: fixed in training, saved with the reward, refused if not whole."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_backbones import batch, make_model, save_resnet

from rlhf.data.networks.package_weights import EFFICIENTNET_LITE0
from rlhf.errors import UserError
from rlhf.rewards.learned.feature_network import FeatureNetwork, build_backbone
from rlhf.rewards.learned.reward_folder import load_reward


def test_a_backbone_of_a_folder_describes_the_hole_and_is_saved_with_the_reward(tmp_path: Path) -> None:
    model = make_model(save_resnet(tmp_path / "resnet"))
    assert not any(parameter.requires_grad for parameter in model.network.backbone.parameters())
    model.save(tmp_path / "reward")
    assert torch.equal(load_reward(tmp_path / "reward").score(*batch()).reward, model.score(*batch()).reward)


def test_a_backbone_that_lacks_a_tensor_is_not_filled_with_random_numbers(tmp_path: Path) -> None:
    save_resnet(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.stages.1.layers.0.layer.0.convolution.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 tensors are missing, such as "):
        build_backbone(str(tmp_path))


def test_training_leaves_a_pretrained_backbone_as_it_is(tmp_path: Path) -> None:
    save_resnet(tmp_path)
    network = FeatureNetwork(build_backbone(str(tmp_path)), 8)
    before = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    network.train()
    network(*batch())
    assert not network.backbone.maps.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.backbone.state_dict().items())


@pytest.mark.skipif(not EFFICIENTNET_LITE0.is_installed, reason="the extra `networks` is not installed")
def test_an_efficientnet_reward_is_saved_and_opened_again(tmp_path: Path) -> None:
    model = make_model("efficientnet-lite0")
    model.save(tmp_path / "reward")
    opened = load_reward(tmp_path / "reward")
    assert torch.equal(opened.score(*batch()).reward, model.score(*batch()).reward)


def test_without_its_package_efficientnet_is_refused_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.data.networks.package_weights.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"prefpaint-ray\[networks\]"):
        build_backbone("efficientnet-lite0")
