from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from rlhf.config.run_config import PromptsConfig
from rlhf.data.captions import read_captions
from rlhf.data.prompt_cutting import make_prompts
from rlhf.data.prompts import checksum_prompts, load_prompts
from rlhf.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "cats").mkdir(parents=True)
    for name in ("cats/1.png", "2.png", "3.png"):
        Image.new("RGB", (64, 64)).save(folder / name)
    (folder / "cats" / "1.txt").write_text("a cat\non a mat\n")
    (folder / "2.txt").write_text("a wall")
    return folder


def test_prompts_have_the_captions_of_a_file_and_else_of_the_texts_beside_them(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    file.write_text('{"file_name": "2.png", "text": "grass"}\n\n')
    make_prompts(images, tmp_path / "out", PromptsConfig(crops_per_photograph=1), seed=0, captions=file)
    found = {prompt.photograph: prompt.caption for prompt in load_prompts(tmp_path / "out")}
    assert found == {"cats/1.png": "a cat on a mat", "2.png": "grass", "3.png": ""}


def test_judgements_of_prompts_with_other_captions_are_told_apart(images: Path, tmp_path: Path) -> None:
    make_prompts(images, tmp_path / "out", PromptsConfig(crops_per_photograph=1), seed=0)
    prompts = load_prompts(tmp_path / "out")
    others = [replace(prompt, caption="another") for prompt in prompts]
    assert checksum_prompts(prompts) != checksum_prompts(others)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            '{"file_name": "2.png", "text": "a"}\n{"file_name": "4.png", "text": "b"}',
            "line 2: '4.png' is no photograph",
        ),
        ('{"file_name": "2.png", "text": "a"}\n{"file_name": "2.png", "text": "b"}', "line 2: '2.png' has a caption"),
        ('{"file_name": "2.png"', "line 1: no JSON"),
        ('{"file_name": "2.png", "text": null}', "line 1: needs two texts"),
        ('["2.png", "a"]', "line 1: needs two texts"),
        (b"\xff\xfe\x00", "no readable UTF-8 text"),
    ],
)
def test_a_line_that_is_no_caption_is_refused_with_its_place(
    images: Path, tmp_path: Path, lines: str | bytes, message: str
) -> None:
    file = tmp_path / "captions.jsonl"
    file.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(UserError, match=message):
        read_captions(images, ["2.png"], file)


def test_a_text_beside_a_photograph_that_is_not_readable_is_named(images: Path) -> None:
    (images / "2.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"2\.txt: no readable UTF-8 text"):
        read_captions(images, ["2.png"], None)


def test_a_file_of_captions_that_is_not_there_is_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: no readable"):
        read_captions(images, ["2.png"], tmp_path / "none.jsonl")
