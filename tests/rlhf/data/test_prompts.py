"""Photographs to prompts."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rlhf.config.run_config import PromptsConfig
from rlhf.data.prompt_cutting import make_prompts
from rlhf.data.prompts import load_prompts
from rlhf.errors import UserError
from rlhf.storage.images import encode_png
from rlhf.storage.tables import PROMPTS, image_cell, read_table, write_table

CONFIG = PromptsConfig(size_px=32, crops_per_photograph=3, test_share=0.3)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Ten pictures of noise and gradients, some in a folder of their own."""
    folder = tmp_path / "photographs"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(10):
        noise = rng.integers(0, 256, (60, 80, 3))
        gradient = np.linspace(0, 255, 80)[None, :, None] * np.ones((60, 1, 3))
        pixels = noise if i % 2 else gradient * (i + 2) / 12
        Image.fromarray(pixels.astype(np.uint8)).save(folder / ("deep" if i > 6 else ".") / f"p{i}.png")
    return folder


def test_prompts_load_as_images_with_holes(photographs: Path, tmp_path: Path) -> None:
    count = make_prompts(photographs, tmp_path / "out", CONFIG, seed=0)
    prompts = load_prompts(tmp_path / "out")
    assert count == len(prompts) == 30
    for prompt in prompts:
        assert prompt.image.shape == (3, 32, 32)
        assert prompt.mask.shape == (1, 32, 32)
        assert float(prompt.image.min()) >= -1
        assert float(prompt.image.max()) <= 1
        assert set(prompt.mask.unique().tolist()) == {0.0, 1.0}
        assert prompt.source == "photographs"
        assert (photographs / prompt.photograph).is_file()
    assert {p.hole for p in prompts} == set(CONFIG.holes)
    assert json.loads((tmp_path / "out" / "skipped.json").read_text()) == []


def test_no_photograph_is_in_two_splits(photographs: Path, tmp_path: Path) -> None:
    for seed in range(3):
        out = tmp_path / str(seed)
        make_prompts(photographs, out, CONFIG, seed=seed)
        splits = defaultdict(set)
        for prompt in load_prompts(out):
            splits[prompt.photograph].add(prompt.split)
        assert all(len(names) == 1 for names in splits.values())
        assert sum(names == {"test"} for names in splits.values()) == 3
        assert len(load_prompts(out, split="test")) == 9
        assert len(load_prompts(out, split="train")) == 21


def test_a_named_split_goes_to_all(photographs: Path, tmp_path: Path) -> None:
    make_prompts(photographs, tmp_path / "out", CONFIG, seed=0, split="novel")
    assert {p.split for p in load_prompts(tmp_path / "out")} == {"novel"}
    with pytest.raises(UserError, match="no prompts of split 'test'; it holds novel"):
        load_prompts(tmp_path / "out", split="test")


def test_same_seed_same_table_another_seed_other_crops(photographs: Path, tmp_path: Path) -> None:
    tables = []
    for number, seed in enumerate((4, 4, 5)):
        make_prompts(photographs, tmp_path / str(number), CONFIG, seed=seed)
        tables.append(read_table(tmp_path / str(number), PROMPTS))
    assert tables[0] == tables[1]
    different = sum(a["image"] != b["image"] for a, b in zip(tables[0], tables[2], strict=True))
    assert different > 20


def test_a_photographs_prompts_do_not_depend_on_its_neighbours(photographs: Path, tmp_path: Path) -> None:
    make_prompts(photographs, tmp_path / "all", CONFIG, seed=0, split="train")
    (photographs / "p0.png").unlink()
    make_prompts(photographs, tmp_path / "fewer", CONFIG, seed=0, split="train")
    everything = read_table(tmp_path / "all", PROMPTS)
    remaining = [row for row in everything if row["photograph"] != "p0.png"]
    assert read_table(tmp_path / "fewer", PROMPTS) == remaining


def test_unreadable_photographs_are_skipped_and_listed(photographs: Path, tmp_path: Path) -> None:
    (photographs / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (200, 5)).save(photographs / "narrow.png")
    whole = (photographs / "p1.png").read_bytes()
    (photographs / "cut.png").write_bytes(whole[: len(whole) // 2])
    count = make_prompts(photographs, tmp_path / "out", CONFIG, seed=0)
    skipped = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert count == 30
    assert [entry["file"] for entry in skipped] == ["broken.jpg", "cut.png", "narrow.png"]
    assert "too small" in skipped[2]["reason"]


def test_a_folder_without_readable_photographs_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    with pytest.raises(UserError, match="no photographs"):
        make_prompts(folder, tmp_path / "out", CONFIG, seed=0)
    (folder / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of 1 photographs is readable"):
        make_prompts(folder, tmp_path / "out", CONFIG, seed=0)


def test_repeated_prompt_ids_are_refused(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_prompts(photographs, out, CONFIG, seed=0)
    write_table(read_table(out, PROMPTS)[:1], PROMPTS, out / "again.parquet")
    with pytest.raises(UserError, match="prompt_id is not unique"):
        load_prompts(out)


def test_photographs_that_differ_only_in_suffix_get_their_own_ids(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("a.png", "a.bmp"):
        Image.new("RGB", (64, 64), (1, 2, 3)).save(folder / name)
    make_prompts(folder, tmp_path / "out", CONFIG, seed=0)
    assert len({p.prompt_id for p in load_prompts(tmp_path / "out")}) == 6


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("image", image_cell(b"", "x.png"), "holds no bytes"),
        ("mask", None, "mask is empty"),
        ("image", image_cell(b"garbage", "x.png"), "image: not an image"),
        ("mask", image_cell(encode_png(Image.new("L", (9, 9), 255)), "x.png"), "mask is 9x9, image is 32x32"),
        ("mask", image_cell(encode_png(Image.new("L", (32, 32), 0)), "x.png"), "no hole"),
    ],
)
def test_a_damaged_row_is_refused_with_its_prompt(
    column: str, cell: dict | None, message: str, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make_prompts(photographs, out, CONFIG, seed=0)
    rows = read_table(out, PROMPTS)
    rows[5][column] = cell
    write_table(rows, PROMPTS, out / "prompts.parquet")
    with pytest.raises(UserError, match=message) as caught:
        load_prompts(out)
    assert rows[5]["prompt_id"] in str(caught.value)


def test_a_loaded_prompt_is_the_stored_picture(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.new("RGB", (64, 64), (0, 255, 51)).save(folder / "flat.png")
    make_prompts(folder, tmp_path / "out", CONFIG, seed=0)
    image = load_prompts(tmp_path / "out")[0].image
    expected = torch.tensor([-1.0, 1.0, 51 / 127.5 - 1]).view(3, 1, 1).expand(3, 32, 32)
    torch.testing.assert_close(image, expected)
