"""Numbers that each backbone gives a fixed picture: stored descriptions stay valid until its code's version is raised.

Where one of these tests fails, the code describes pictures in another way: raise the number that `code_version` is made
of, and write the new one and the new numbers here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from small_backbones import save_resnet, tiny_tower
from small_checkpoint import release_state

from rlhf.data.networks.package_weights import EFFICIENTNET_LITE0
from rlhf.rewards.learned.backbones.clip_backbone import ClipBackbone
from rlhf.rewards.learned.backbones.maps_backbone import FolderMaps, MapsBackbone
from rlhf.rewards.learned.feature_network import Backbone, SmallBackbone, build_backbone

Module = TypeVar("Module", bound=torch.nn.Module)


def small(folder: Path) -> Backbone:
    return SmallBackbone()


def clip(folder: Path) -> Backbone:
    return ClipBackbone(filled(tiny_tower(2)))


def resnet(folder: Path) -> Backbone:
    return MapsBackbone(filled(FolderMaps(save_resnet(folder))))


def efficientnet(folder: Path) -> Backbone:
    return build_backbone("efficientnet-lite0")


def release(folder: Path) -> Backbone:
    torch.save(release_state(), folder / "c.pt")
    return build_backbone(f"prefpaint-release:{folder / 'c.pt'}")


def filled(module: Module) -> Module:
    """Gives a network weights that no version of its library draws in another way."""
    generator = torch.Generator().manual_seed(0)
    for _, tensor in sorted(module.state_dict().items()):
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.4 * drawn - 0.2 if tensor.dim() > 1 else 0.5 + drawn)
    return module


@pytest.mark.parametrize(
    ("make", "version", "numbers"),
    [
        (small, (1,), (1.8797, 2.2598)),
        (clip, (1,), (0.2011, 0.2228)),
        (release, (1, 1), (-0.0968, -0.5779)),
        (resnet, (1, 1, 1), (7.5769, 5.6067)),
        pytest.param(
            efficientnet,
            (1, 1, 1),
            (7.6332, 24.3732),
            marks=pytest.mark.skipif(
                not EFFICIENTNET_LITE0.is_installed, reason="the extra `networks` is not installed"
            ),
        ),
    ],
)
def test_a_backbone_gives_the_numbers_of_its_version(
    make: Callable[[Path], Backbone], version: tuple[int, ...], numbers: tuple[float, float], tmp_path: Path
) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, :, 8:20, 6:24] = 1
    masks[1, :, 4:12, 16:] = 1
    backbone = make(tmp_path).eval()
    with torch.no_grad():
        features = backbone(images, masks).double()
    # Every feature counts in the sums, whose last digits may differ from processor to processor.
    sums = features @ torch.arange(features.shape[1]).double().cos()
    assert (backbone.code_version, sums.tolist()) == (version, pytest.approx(numbers, abs=2e-3))
