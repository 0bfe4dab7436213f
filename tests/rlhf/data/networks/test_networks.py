"""Pretrained networks: weights of packages, and what is pooled of a hole."""

import sys
from pathlib import Path

import pytest
import torch

from rlhf.data.networks.efficientnet_lite import EfficientNetLite0Maps
from rlhf.data.networks.hole_features import PER_CHANNEL, PIXEL_CHANNELS, describe_hole
from rlhf.data.networks.mobilenet_v2 import MobileNetV2Maps
from rlhf.data.networks.package_weights import EFFICIENTNET_LITE0, RESNET50, PackageWeights
from rlhf.data.networks.resnet50 import ResNet50Maps, open_resnet50
from rlhf.errors import UserError
from rlhf.storage.checksum import file_checksum

needs_packages = pytest.mark.skipif(
    not (EFFICIENTNET_LITE0.is_installed and RESNET50.is_installed), reason="the extra `networks` is not installed"
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageWeights:
    """A package whose module must not be imported."""
    folder = tmp_path / "weights_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError")
    torch.save({"a": torch.ones(2)}, folder / "a.pth")
    monkeypatch.syspath_prepend(tmp_path)
    digest = file_checksum(folder / "a.pth")
    return PackageWeights(package="weights-of-a-test", module=folder.name, file="a.pth", sha256=digest)


def test_weights_are_read_without_running_their_package(package: PackageWeights) -> None:
    assert package.is_installed
    assert package.read()["a"].tolist() == [1, 1]
    assert package.module not in sys.modules


def test_other_weights_than_the_tested_ones_are_refused(package: PackageWeights, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / package.module / "a.pth")
    with pytest.raises(UserError, match="not the weights that were tested"):
        package.read()


def test_a_missing_package_is_named_with_its_extra() -> None:
    missing = PackageWeights(package="no-such", module="no_such_module", file="a", sha256="")
    with pytest.raises(UserError, match=r"no-such: .*prefpaint-ray\[networks\]"):
        missing.read()


def hole(size: int = 64) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    return mask


def maps_of_pixels(images: torch.Tensor) -> list[torch.Tensor]:
    return [images[:, :1, ::2, ::2]]


def test_a_map_is_pooled_inside_the_hole_around_it_and_across_its_border() -> None:
    image = torch.full((1, 3, 64, 64), -0.5)
    filled = torch.where(hole() > 0, 0.5, image)
    own = describe_hole(maps_of_pixels, filled, hole())[0, PER_CHANNEL * PIXEL_CHANNELS :]
    inside, level, absolute, _, _, _, across = own.tolist()
    assert inside == pytest.approx(0.5, abs=0.1)
    assert level == pytest.approx(1.0, abs=0.1)
    assert absolute == pytest.approx(1.0, abs=0.1)
    assert across > 0.1, "the step lies across the border alone"
    whole = describe_hole(maps_of_pixels, image, hole())[0, PER_CHANNEL * PIXEL_CHANNELS :]
    assert whole[[1, 2, 4, 5, 6]].abs().max() < 1e-5


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (256, 256)])
def test_pictures_of_any_size_have_the_same_features(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(2, 1, *size)
    mask[..., 8:30, 8:40] = 1
    network = MobileNetV2Maps().eval()
    with torch.no_grad():
        features = describe_hole(network, image, mask)
    assert features.shape == (2, PER_CHANNEL * (PIXEL_CHANNELS + sum(network.channels)))
    assert features.isfinite().all()


@pytest.mark.parametrize("network", [MobileNetV2Maps, ResNet50Maps])
def test_maps_have_the_channels_that_a_network_names(network: type[torch.nn.Module]) -> None:
    with torch.no_grad():
        maps = network().eval()(torch.zeros(1, 3, 64, 64))
    assert tuple(found.shape[1] for found in maps) == network.channels
    assert [64 // found.shape[2] for found in maps] == sorted(64 // found.shape[2] for found in maps)


@needs_packages
def test_packaged_networks_tell_a_blurred_hole_from_the_sharp_one() -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    blurred = torch.where(hole() > 0, torch.nn.functional.avg_pool2d(image, 5, 1, 2), image)
    for network in (EfficientNetLite0Maps(), open_resnet50()):
        with torch.no_grad():
            sharp, smooth = (describe_hole(network, x, hole()) for x in (image, blurred))
        assert not network.training
        assert (sharp - smooth).abs().max() > 0.1


@needs_packages
def test_efficientnet_lite0_names_a_picture_as_its_package_does() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(EFFICIENTNET_LITE0.read())
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        maps = EfficientNetLite0Maps()(image)
        x = network.eval()._swish(network._bn0(network._conv_stem(image)))
        for block in network._blocks[:11]:
            x = block(x)
    torch.testing.assert_close(maps[-1], x)
