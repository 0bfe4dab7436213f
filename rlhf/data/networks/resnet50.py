"""ResNet-50 (arXiv:1512.03385, stride in the 3x3 convolution) up to stride 8; parameters have torchvision's names."""

import torch
import torch.nn.functional as F
from torch import nn

from rlhf.data.networks.hole_features import to_imagenet
from rlhf.data.networks.package_weights import RESNET50

STAGES = ((64, 3, 1), (128, 4, 2))
"""Inner width, blocks and first stride of each stage."""


class ResNet50Maps(nn.Module):
    """Maps of the stem and of the first two stages."""

    channels = (64, 256, 512)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width = 64
        for number, (inner, blocks, stride) in enumerate(STAGES, start=1):
            stage = nn.Sequential()
            for index in range(blocks):
                stage.append(_Bottleneck(width, inner, stride if index == 0 else 1))
                width = 4 * inner
            self.add_module(f"layer{number}", stage)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns maps [B, C, h, w] of images [B, 3, H, W] in [-1, 1], at strides 2, 4 and 8."""
        maps = [F.relu(self.bn1(self.conv1(to_imagenet(x))))]
        x = F.max_pool2d(maps[0], 3, 2, 1)
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
            maps.append(x)
        return maps


class _Bottleneck(nn.Module):
    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        self.downsample = nn.Sequential()
        if stride > 1 or width != 4 * inner:
            self.downsample.extend([nn.Conv2d(width, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + self.downsample(x))


def open_resnet50() -> ResNet50Maps:
    """Opens the network with the weights of the package imgsim. Raises UserError if it is not installed."""
    network = ResNet50Maps()
    prefix = "module.pre."
    weights = {name.removeprefix(prefix): value for name, value in RESNET50.read().items()}
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network.eval().requires_grad_(False)
