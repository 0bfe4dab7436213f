"""A small reward model on any backbone, and random backbones of transformers."""

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, ResNetBackbone, ResNetConfig

from rlhf.rewards.learned.bound import fit_ridge
from rlhf.rewards.learned.feature_network import FeatureNetwork, build_backbone
from rlhf.rewards.learned.reward_model import Calibration, RewardModel

CALIBRATION = Calibration(
    coverage=0.9,
    conformal=2.0,
    theorem=5.0,
    noise=0.4,
    delta=0.05,
    ridge=1.0,
    parameter_norm=3.0,
    median_uncertainty=0.2,
    trust_k=0.05,
    trust_b=0.7,
    uncertainty_quantile=4.0,
    median_released_norm=0.1,
)


def batch(count: int = 6, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    masks = torch.zeros(count, 1, size, size)
    masks[:, :, 8:20, 6:24] = 1
    return images, masks


def make_model(backbone: str = "small") -> RewardModel:
    torch.manual_seed(0)
    network = FeatureNetwork(build_backbone(backbone), 8)
    network.train()
    network(*batch(16))
    network.eval()
    with torch.no_grad():
        features = network(*batch(16))
    head = fit_ridge(features, features[:, 0] + 0.1, CALIBRATION.ridge)
    return RewardModel(network=network, head=head, calibration=CALIBRATION, backbone=backbone, feature_dim=8)


def tiny_tower(layers: int = 10) -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    torch.manual_seed(0)
    return CLIPVisionModel(config)


def save_resnet(folder: Path) -> str:
    """A random ResNet as a folder of transformers; returns its name as a backbone."""
    config = ResNetConfig(embedding_size=4, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic")
    ResNetBackbone(config).save_pretrained(folder)
    return str(folder)
