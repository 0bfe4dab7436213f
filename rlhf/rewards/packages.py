"""Imports the packages of published rewards, which are not installed by default."""

import importlib
from types import ModuleType

from rlhf.errors import UserError


def import_package(module: str, distribution: str, name: str, remedy: str) -> ModuleType:
    """Imports a module; raises UserError if it is not installed or does not work with the installed libraries."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"reward {name}: needs the package {distribution}, which does not import here ({error}); "
            f"`pip install {distribution}`, {remedy}"
        ) from error
