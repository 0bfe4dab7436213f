"""Backbones that are pretrained networks: their feature maps at several depths, pooled by the hole.

`efficientnet-lite0` comes from packages; other networks are folders of transformers' backbones, such as ResNet,
ConvNeXt or DINOv2. The network is not trained.
"""

from typing import Any

import torch
from torch import nn

from rlhf.data.networks.efficientnet_lite import EfficientNetLite0Maps
from rlhf.data.networks.hole_features import PER_CHANNEL, PIXEL_CHANNELS, describe_hole, to_imagenet
from rlhf.data.networks.hole_features import VERSION as HOLE_FEATURES
from rlhf.data.networks.pretrained import load_whole
from rlhf.rewards.learned.backbones.hole_statistics import COUNT, hole_statistics
from rlhf.rewards.learned.backbones.hole_statistics import VERSION as HOLE_STATISTICS

DEPTHS = 4
"""Number of maps, from fine to coarse, that are taken of a folder's network."""


class FolderMaps(nn.Module):
    """Feature maps of a transformers backbone."""

    def __init__(self, name: str) -> None:
        """Opens a folder or hub name. Raises OSError or ValueError if it holds no backbone, or lacks a tensor."""
        super().__init__()
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

        config: Any = AutoConfig.from_pretrained(name)
        if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
            raise ValueError(f"transformers has no backbone of type {config.model_type}")
        last = len(config.stage_names) - 1
        config.out_indices = sorted({round(index) for index in torch.linspace(1, last, DEPTHS).tolist()})
        # Not AutoBackbone.from_pretrained, which asks the hub whether a folder is one of its repositories.
        model = load_whole(MODEL_FOR_BACKBONE_MAPPING[type(config)], name, config=config)
        self.model = model.eval().requires_grad_(False)
        self.channels = tuple(model.channels)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns the maps [B, C, h, w] of images [B, 3, H, W] in [-1, 1], normalised as ImageNet's."""
        return list(self.model(to_imagenet(x)).feature_maps)


class MapsBackbone(nn.Module):
    """A network's maps pooled inside the hole, around it and across its border, and the statistics of `small`."""

    code_version: tuple[int, ...] = (1, HOLE_FEATURES, HOLE_STATISTICS)
    """The first number is raised when the maps change."""

    def __init__(self, maps: EfficientNetLite0Maps | FolderMaps) -> None:
        super().__init__()
        self.maps = maps
        self.output_dim = PER_CHANNEL * (PIXEL_CHANNELS + sum(maps.channels)) + COUNT

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Describes images [B, 3, H, W] in [-1, 1] with masks [B, 1, H, W]: [B, output_dim]."""
        return torch.cat([describe_hole(self.maps, images, masks), hole_statistics(images, masks)], dim=1)

    def train(self, mode: bool = True) -> "MapsBackbone":
        """Stays in evaluation mode, since the network's normalisations are part of its weights."""
        return super().train(False)


def is_clip(name: str) -> bool:
    """Returns whether the configuration of a folder or hub name is of CLIP, or unreadable."""
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(name)
    except (OSError, ValueError):
        return True
    return config.model_type.startswith("clip")
