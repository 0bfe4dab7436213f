"""Images that are answered as URLs."""

import os
import time
from pathlib import Path

import pytest

from rlhf.errors import UserError
from serve.api.image_store import KEPT_S, NAME, ImageStore


def test_an_image_is_found_by_its_name_alone(tmp_path: Path):
    store = ImageStore(tmp_path / "store")
    name = store.put(b"bytes", "png")
    assert NAME.fullmatch(name)
    assert store.get(name) == b"bytes"
    assert store.put(b"bytes", "png") != name
    (tmp_path / "secret.png").write_bytes(b"secret")
    for other in ("../secret.png", "secret.png", "", ".", name.replace(".png", ".webp"), "a" * 32 + ".png"):
        assert store.get(other) is None


def test_old_images_are_gone_and_other_files_stay(tmp_path: Path):
    store = ImageStore(tmp_path)
    old = store.put(b"old", "png")
    (tmp_path / "notes.txt").write_text("mine")
    for name in (old, "notes.txt"):
        os.utime(tmp_path / name, (0, time.time() - KEPT_S - 1))
    assert store.get(old) is None
    store._swept = -60.0 - KEPT_S
    store.put(b"new", "png")
    assert not (tmp_path / old).exists()
    assert (tmp_path / "notes.txt").exists()


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path):
    store = ImageStore(tmp_path / "store")
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("a file")
    with pytest.raises(UserError, match="store"):
        store.put(b"bytes", "png")
