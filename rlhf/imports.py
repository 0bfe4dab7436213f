"""Importing large packages quickly."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """Pauses the collection of garbage within the block, which is to import large packages and to open models.

    They make a million objects that all stay, and each collection would look through them again: a quarter of the
    time that diffusers and transformers take to import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
