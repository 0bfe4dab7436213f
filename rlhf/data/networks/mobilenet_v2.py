"""MobileNetV2 (arXiv:1801.04381) up to stride 16; parameters have torchvision's names."""

import torch
from torch import nn

from rlhf.data.networks.hole_features import to_imagenet

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
"""Expansion, channels, blocks and first stride of each stage (table 2 of the paper)."""


class MobileNetV2Maps(nn.Module):
    """Maps of the five stages."""

    channels = tuple(stage[1] for stage in STAGES)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleList([_convolution(3, 32, 3, 2)])
        width = 32
        for expansion, channels, blocks, stride in STAGES:
            for index in range(blocks):
                self.features.append(_InvertedResidual(width, channels, stride if index == 0 else 1, expansion))
                width = channels

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns maps [B, C, h, w] of images [B, 3, H, W] in [-1, 1], at strides 2, 4, 8, 16 and 16."""
        ends = [sum(stage[2] for stage in STAGES[: i + 1]) for i in range(len(STAGES))]
        x = to_imagenet(x)
        maps = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in ends:
                maps.append(x)
        return maps


class _InvertedResidual(nn.Module):
    def __init__(self, width: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.has_shortcut = stride == 1 and width == channels
        expand = [_convolution(width, inner, 1, 1)] if expansion > 1 else []
        depthwise = _convolution(inner, inner, 3, stride, groups=inner)
        project = [nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.conv = nn.Sequential(*expand, depthwise, *project)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


def _convolution(width: int, channels: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU6())
