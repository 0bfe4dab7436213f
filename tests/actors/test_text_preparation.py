"""Embeddings of captions, made before samplers and learners start."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from processes import find_process, wait_for
from small_parts import small_config, small_prompts, write_prompts

from actors.session.ray_session import ray_session
from actors.text_preparation import prepare_texts
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.policy import load_policy
from rlhf.errors import UserError

CAPTIONS = ("a cat", "a dog", "a cat")


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with ray_session(num_cpus=1):
        yield


@pytest.fixture
def table(tmp_path: Path) -> PromptTable:
    prompts = [replace(prompt, caption=text) for prompt, text in zip(small_prompts(3), CAPTIONS, strict=True)]
    return PromptTable(write_prompts(prompts, tmp_path / "prompts"), split="train")


def is_at_work() -> bool:
    with contextlib.suppress(AssertionError):
        return find_process("_fill").is_running()
    return False


def test_prompts_without_captions_start_nothing(small_pipeline: Path, tmp_path: Path) -> None:
    table = PromptTable(write_prompts(small_prompts(2), tmp_path / "prompts"))
    assert prepare_texts(small_config(small_pipeline), table, tmp_path, None) is None
    assert not ray.is_initialized()
    assert not (tmp_path / "texts").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("session")
def test_captions_are_embedded_once_by_a_process_that_ends(
    small_pipeline: Path, table: PromptTable, tmp_path: Path
) -> None:
    config = small_config(small_pipeline)
    cache = prepare_texts(config, table, tmp_path, None)
    assert cache is not None
    encoder = load_policy(config.model).family
    for text in ("", *CAPTIONS):
        assert torch.equal(cache.read(text).embedding, encoder.embed(text).embedding)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "texts" / cache.encoder).glob("*.safetensors")}
    assert len(files) == 3, "two captions and the empty text"
    assert prepare_texts(config, table, tmp_path, None) == cache
    assert all(path.stat().st_mtime_ns == written for path, written in files.items())
    wait_for(lambda: not is_at_work())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("session")
def test_a_model_that_does_not_open_is_told_as_the_users_error(table: PromptTable, tmp_path: Path) -> None:
    config = small_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere") as raised:
        prepare_texts(config, table, tmp_path, None)
    assert type(raised.value) is UserError, "Ray's own error would show its traceback"
