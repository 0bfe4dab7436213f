import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_parts import small_prompts, write_prompts

from rlhf.config.run_config import ModelConfig, RunConfig
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.families.family import TextEmbedding
from rlhf.diffusion.families.pipeline_folder import PAINTING
from rlhf.diffusion.families.text_cache import TextCache, key_of
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.text_encoding import cache_folder, fill_cache, needs_cache
from rlhf.errors import UserError


@pytest.fixture
def table(tmp_path: Path) -> PromptTable:
    prompts = [replace(p, caption=text) for p, text in zip(small_prompts(3), ("a cat", "a dog", "a cat"), strict=True)]
    return PromptTable(write_prompts(prompts, tmp_path / "prompts"))


def equal(one: TextEmbedding, other: TextEmbedding) -> bool:
    return torch.equal(one.embedding, other.embedding)


def test_each_distinct_caption_is_encoded_once(small_pipeline: Path, table: PromptTable, tmp_path: Path) -> None:
    config = ModelConfig(path=str(small_pipeline))
    cache = fill_cache(config, table, tmp_path / "texts")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "texts" / cache.encoder).glob("*.safetensors")}
    assert len(files) == 3, "two captions and the empty text"
    assert fill_cache(config, table, tmp_path / "texts") == cache
    assert all(path.stat().st_mtime_ns == written for path, written in files.items())
    encoder = load_policy(config).family
    for text in ("", "a cat", "a dog"):
        assert equal(cache.read(text), encoder.embed(text))


def test_embeddings_of_another_encoder_are_not_used_and_named(
    small_pipeline: Path, table: PromptTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = tmp_path / "texts", shutil.copytree(small_pipeline, tmp_path / "other")
    first = fill_cache(ModelConfig(path=str(small_pipeline)), table, folder)
    opened = load_policy(ModelConfig(path=str(other))).family.pipeline
    with torch.no_grad():
        for parameter in opened.text_encoder.parameters():
            parameter.mul_(1.5)
    opened.text_encoder.save_pretrained(other / "text_encoder")
    capsys.readouterr()
    second = fill_cache(ModelConfig(path=str(other)), table, folder)
    assert f"{other}, only by that of {small_pipeline} ({first.encoder}), which is another" in capsys.readouterr().err
    assert first.encoder != second.encoder
    assert not equal(first.read("a cat"), second.read("a cat"))
    # The network is no part of what an embedding depends on, nor is the place of the model.
    shutil.copytree(small_pipeline, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "unet")
    assert fill_cache(ModelConfig(path=str(tmp_path / "moved")), table, folder).encoder == first.encoder


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_embedding_is_refused_by_file_and_computed_again(
    small_pipeline: Path, table: PromptTable, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    config = ModelConfig(path=str(small_pipeline))
    cache = fill_cache(config, table, tmp_path / "texts")
    sound = cache.read("a cat")
    files = list((tmp_path / "texts" / cache.encoder).glob("*.safetensors"))
    for path in files:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"texts/\w+/\w+\.safetensors: damaged \(.*remove it, and start"):
        cache.read("a cat")
    for path in files:
        path.unlink()
    assert equal(fill_cache(config, table, tmp_path / "texts").read("a cat"), sound)


def test_a_missing_embedding_is_told_with_the_caption_and_the_remedy(
    small_pipeline: Path, table: PromptTable, tmp_path: Path
) -> None:
    cache = fill_cache(ModelConfig(path=str(small_pipeline)), table, tmp_path / "texts")
    policy = load_policy(ModelConfig(path=str(small_pipeline)), parts=PAINTING, texts=cache)
    with pytest.raises(UserError, match=r"no embedding of 'a bird' by the text encoder of .*all nodes see this folder"):
        policy.embed([replace(small_prompts(1)[0], caption="a bird")])


def test_readers_see_whole_files_while_others_write_them(tmp_path: Path) -> None:
    cache = TextCache.open(tmp_path, "model", {"files": "some"})
    texts = [TextEmbedding(embedding=torch.full((1, 64, 64), float(i)), pooled=None) for i in range(2)]
    cache.write(key_of("a cat"), texts[0])

    def work(number: int) -> None:
        for _ in range(20):
            cache.write(key_of("a cat"), texts[number % 2])
            found = cache.read("a cat")
            assert any(equal(found, text) for text in texts)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert [path.name for path in (tmp_path / cache.encoder).iterdir() if path.suffix == ".tmp"] == []


def test_a_cache_is_kept_in_the_stages_folder_or_where_the_configuration_says(tmp_path: Path) -> None:
    assert cache_folder(RunConfig(), tmp_path) == tmp_path / "texts"
    shared = RunConfig.model_validate({"cluster": {"text_cache": "s3://bucket/texts"}})
    assert str(cache_folder(shared, tmp_path)) == "s3://bucket/texts"


def test_prompts_without_captions_need_no_cache(table: PromptTable, tmp_path: Path) -> None:
    assert needs_cache(ModelConfig(), table)
    assert not needs_cache(ModelConfig(), PromptTable(write_prompts(small_prompts(2), tmp_path)))
