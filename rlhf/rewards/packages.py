"""Published rewards that come as a package of their own."""

import importlib
from types import ModuleType

from rlhf.errors import UserError


def import_package(module: str, distribution: str, name: str, remedy: str) -> ModuleType:
    """The module; UserError where it is not installed, or does not work with the libraries that are."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"reward {name}: needs the package {distribution}, which does not import here ({error}); "
            f"`pip install {distribution}`, {remedy}"
        ) from error
