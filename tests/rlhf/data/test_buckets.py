"""Buckets of sizes, batches of one size, and prompts cut to the shape of their photographs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from rlhf.commands.cli import app
from rlhf.config.config_files import load_config
from rlhf.config.run_config import PromptsConfig
from rlhf.data.buckets import batches_of_one_size, list_buckets, nearest_bucket
from rlhf.data.prompt_cutting import make_prompts
from rlhf.data.prompts import Prompt, PromptTable, load_prompts
from rlhf.errors import UserError

SHAPES = {"square": (90, 90), "low": (100, 202), "wide": (60, 70), "high": (400, 80)}
"""Heights and widths of photographs."""
EXPECTED = {"square": (64, 64), "low": (40, 96), "wide": (56, 72), "high": (128, 32)}
"""Their nearest buckets of 64 px: 100:202 is nearer to 40:96 as a quotient, and to 48:80 as a difference."""


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Red grows from left to right and green from top to bottom, by one level a pixel."""
    (tmp_path / "photographs").mkdir()
    for name, (height, width) in SHAPES.items():
        rows, columns = np.mgrid[0:height, 0:width]
        pixels = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{name}.png")
    return tmp_path / "photographs"


@pytest.mark.parametrize(("size_px", "step_px"), [(64, 8), (512, 64), (1024, 64), (768, 32), (32, 8)])
def test_sides_are_multiples_of_the_step_and_no_side_could_be_longer(size_px: int, step_px: int) -> None:
    buckets = list_buckets(size_px, step_px)
    assert (size_px, size_px) in buckets
    assert [(width, height) for height, width in reversed(buckets)] == buckets
    assert len(set(buckets)) == len(buckets)
    for height, width in buckets:
        assert height % step_px == width % step_px == 0
        assert 0.7 * size_px**2 < height * width <= size_px**2
        assert size_px / 2 <= min(height, width)
        assert (max(height, width) + step_px) * min(height, width) > size_px**2


def test_buckets_of_1024_are_among_those_of_sdxl() -> None:
    low = [(512, 2048), (576, 1792), (640, 1600), (704, 1472), (768, 1344), (832, 1216), (896, 1152), (960, 1088)]
    assert list_buckets(1024, 64)[:9] == [*low, (1024, 1024)]


def test_a_photograph_gets_the_nearest_aspect_ratio_as_a_quotient() -> None:
    buckets = list_buckets(64, 8)
    assert {name: nearest_bucket(size, buckets) for name, size in SHAPES.items()} == EXPECTED
    assert nearest_bucket((9000, 100), buckets) == (128, 32)


def test_batches_have_one_size_and_keep_the_order() -> None:
    sizes = {f"p{i}": (32, 32) if i % 3 else (16, 64) for i in range(11)}
    batches = batches_of_one_size(sizes, sizes, 3)
    assert [{sizes[name] for name in batch} for batch in batches] == [
        {size} for size in [(16, 64)] * 2 + [(32, 32)] * 3
    ]
    assert [len(batch) for batch in batches] == [3, 1, 3, 3, 1]
    for size in set(sizes.values()):
        assert [n for b in batches for n in b if sizes[n] == size] == [n for n in sizes if sizes[n] == size]
    alone = dict.fromkeys(sizes, (8, 8))
    assert batches_of_one_size(alone, alone, 4) == [tuple(list(sizes)[i : i + 4]) for i in (0, 4, 8)]


def test_crops_have_the_bucket_of_their_photograph_and_are_not_stretched(photographs: Path, tmp_path: Path) -> None:
    config = PromptsConfig(size_px=64, buckets=True, crops_per_photograph=5)
    make_prompts(photographs, tmp_path / "out", config, seed=0)
    prompts = load_prompts(tmp_path / "out")
    assert PromptTable(tmp_path / "out").sizes == {prompt.prompt_id: prompt.size for prompt in prompts}
    for prompt in prompts:
        assert prompt.size == EXPECTED[Path(prompt.photograph).stem]
        assert prompt.image.shape[1:] == prompt.mask.shape[1:]
        assert 0.02 <= float(prompt.mask.mean()) <= 0.98
        if prompt.photograph != "high.png":  # Levels end at 255.
            across, down = slopes_of(prompt)
            assert across == pytest.approx(down, rel=0.1)


def slopes_of(prompt: Prompt) -> tuple[float, float]:
    """Pixels of the photograph in one of the crop, to the right and down."""
    red, green, _ = prompt.image * 127.5
    return float((red[:, -2] - red[:, 1]).mean()) / (prompt.size[1] - 3), float((green[-2] - green[1]).mean()) / (
        prompt.size[0] - 3
    )


def test_the_square_bucket_cuts_what_no_buckets_cut(photographs: Path, tmp_path: Path) -> None:
    tables = []
    for name, buckets in (("squares", False), ("buckets", True)):
        make_prompts(photographs, tmp_path / name, PromptsConfig(size_px=64, buckets=buckets), seed=0)
        tables.append([p for p in load_prompts(tmp_path / name) if p.photograph == "square.png"])
    for ours, theirs in zip(*tables, strict=True):
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.mask, theirs.mask)


def test_the_command_takes_size_and_buckets_and_prints_their_numbers(photographs: Path, tmp_path: Path) -> None:
    options = ["--images", str(photographs), "--out", str(tmp_path / "out"), "--size-px", "64", "--buckets"]
    done = CliRunner().invoke(app, ["prompts", *options, "--set", "prompts.crops_per_photograph=3"])
    assert done.exit_code == 0, done.output
    table = [line.split() for line in done.output.splitlines() if " x " in line][1:]
    assert table == [
        ["96", "x", "40", "2.40", "3840", "3"],
        ["72", "x", "56", "1.29", "4032", "3"],
        ["64", "x", "64", "1.00", "4096", "3"],
        ["32", "x", "128", "0.25", "4096", "3"],
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("prompts.buckets=true", "prompts.size_px=400"), "bucket_step_px 48 does not divide size_px 400"),
        (("prompts.bucket_step_px=16",), "only buckets have a step"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, overrides)
