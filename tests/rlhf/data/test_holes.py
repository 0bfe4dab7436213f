"""Hole families keep the ranges that their docstrings state."""

import math

import numpy as np
import pytest
from skimage.measure import label
from skimage.morphology import disk, opening

from rlhf.config.config_files import load_config
from rlhf.config.run_config import PromptsConfig
from rlhf.data.holes import FAMILIES, boundary_band, boundary_square, box, brush, disocclusion, draw_hole, warp
from rlhf.errors import UserError

SIZES = (64, 128)
SEEDS = range(60)


class FixedRng:
    """A generator whose uniform draws lie at a fixed share of their range, and whose strokes are straight."""

    def __init__(self, share: float) -> None:
        self.share = share

    def uniform(self, low: float, high: float, size: int | None = None) -> float | np.ndarray:
        value = low + self.share * (high - low)
        return value if size is None else np.full(size, value)

    def integers(self, low: int, high: int | None = None, size: int | None = None) -> int | np.ndarray:
        value = 0 if high is None else low
        return value if size is None else np.full(size, value)

    def normal(self, mean: float, _deviation: float) -> float:
        return mean


def masks_of(family: str, size: int) -> list[np.ndarray]:
    return [FAMILIES[family](np.random.default_rng(seed), size, size) for seed in SEEDS]


def extent(pixels: np.ndarray) -> tuple[int, int]:
    """Height and width of the smallest rectangle around the pixels."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


@pytest.mark.parametrize("size", SIZES)
def test_boundary_square_keeps_one_square_of_15_to_25_percent_of_the_area(size: int) -> None:
    places = set()
    for mask in masks_of("boundary_square", size):
        height, width = extent(~mask)
        assert height == width
        assert (~mask).sum() == height * width, "the kept part is a filled square"
        assert size * math.sqrt(0.15) - 0.5 <= height <= size * math.sqrt(0.25) + 0.5
        places.add((int(np.argmax((~mask).any(1))), int(np.argmax((~mask).any(0)))))
    assert len(places) > len(SEEDS) / 2, "anywhere, not at one place"


@pytest.mark.parametrize("size", SIZES)
def test_boundary_band_keeps_a_full_height_band_of_35_to_40_percent(size: int) -> None:
    for mask in masks_of("boundary_band", size):
        height, width = extent(~mask)
        assert height == size
        assert (~mask).sum() == height * width
        assert 0.35 * size - 0.5 <= width <= 0.40 * size + 0.5


@pytest.mark.parametrize("size", SIZES)
def test_box_repaints_one_rectangle_with_sides_of_25_to_50_percent(size: int) -> None:
    for mask in masks_of("box", size):
        height, width = extent(mask)
        assert mask.sum() == height * width
        for side in (height, width):
            assert 0.25 * size - 0.5 <= side <= 0.50 * size + 0.5


@pytest.mark.parametrize(("share", "fraction"), [(0.0, 0.08), (1.0, 0.18)])
def test_brush_strokes_are_8_to_18_percent_wide(share: float, fraction: float) -> None:
    mask = brush(FixedRng(share), 200, 200)
    height, width = extent(mask)
    assert abs(height - 200 * fraction) <= 2, "a stroke along the rows is as high as it is wide"
    assert width > height


def test_brush_draws_at_most_three_strokes_none_thinner_than_stated() -> None:
    counts = set()
    for seed in SEEDS:
        mask = brush(np.random.default_rng(seed), 128, 128)
        counts.add(label(mask).max())
        padded = np.pad(mask, 16, mode="edge")
        lost = padded & ~opening(padded, disk(4))
        assert lost.mean() < 0.01
    assert counts == {1, 2, 3}


def test_warp_hides_5_to_60_percent() -> None:
    for mask in masks_of("warp", 64):
        assert 0.05 <= mask.mean() <= 0.6


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_holes_are_boolean_reproducible_and_differ_by_seed(family: str) -> None:
    masks = [draw_hole(family, np.random.default_rng(seed), 64) for seed in range(10)]
    for seed, mask in enumerate(masks):
        assert mask.dtype == bool
        assert mask.shape == (64, 64)
        assert 0.02 <= mask.mean() <= 0.98
        assert np.array_equal(mask, draw_hole(family, np.random.default_rng(seed), 64))
    assert len({mask.tobytes() for mask in masks}) > 5


def test_a_new_family_is_one_entry_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        return np.tri(height, width, dtype=bool)

    with pytest.raises(UserError, match=r"prompts\.holes\.0: Input should be 'boundary_square', .* or 'warp'"):
        load_config(None, ("prompts.holes=[half]",))
    monkeypatch.setitem(FAMILIES, "half", half)
    assert load_config(None, ("prompts.holes=[half, box]",)).prompts.holes == ("half", "box")
    assert PromptsConfig().holes == ("boundary_square", "boundary_band", "box", "brush", "warp", "half")
    assert np.array_equal(draw_hole("half", np.random.default_rng(0), 64), np.tri(64, dtype=bool))


def test_the_names_of_the_families_are_those_of_the_functions() -> None:
    expected = [boundary_square, boundary_band, box, brush, warp]
    assert {name: f.__name__ for name, f in FAMILIES.items()} == {f.__name__: f.__name__ for f in expected}


@pytest.mark.parametrize("depth", [0.5, 2.0, 300.0])
def test_flat_depth_without_rotation_hides_nothing(depth: float) -> None:
    assert not disocclusion(np.full((48, 64), depth), yaw=0.0, pitch=0.0).any()


def test_a_camera_that_does_not_move_sees_all_of_an_uneven_scene() -> None:
    depth = np.random.default_rng(0).uniform(1, 3, (48, 48))
    assert not disocclusion(depth, yaw=0.0, pitch=0.0).any()


def blob_scene() -> np.ndarray:
    depth = np.full((96, 96), 2.0)
    depth[36:60, 36:60] = 1.2
    return depth


@pytest.mark.parametrize("yaw", [0.3, -0.3])
def test_a_near_blob_hides_pixels_on_one_side_of_it_when_the_camera_yaws(yaw: float) -> None:
    flat, blob = np.full((96, 96), 2.0), blob_scene()
    more = disocclusion(blob, yaw=yaw, pitch=0.0) & ~disocclusion(flat, yaw=yaw, pitch=0.0)
    rows, left, right = slice(40, 56), slice(8, 36), slice(60, 88)
    sides = sorted([more[rows, left].sum(), more[rows, right].sum()])
    assert sides[1] > 50, "beside the blob something is hidden"
    assert sides[0] < sides[1] / 5, "and on the other side all but nothing"
    assert more[:20].sum() < 5, "nothing is hidden far above it"


def test_the_hidden_side_changes_with_the_sign_of_the_yaw() -> None:
    depth = blob_scene()
    one, other = (disocclusion(depth, yaw=yaw, pitch=0.0)[40:56] for yaw in (0.3, -0.3))
    is_left_first = one[:, 8:36].sum() > one[:, 60:88].sum()
    is_left_second = other[:, 8:36].sum() > other[:, 60:88].sum()
    assert is_left_first != is_left_second


def test_hidden_pixels_do_not_depend_on_the_unit_of_depth() -> None:
    depth = blob_scene()
    expected = disocclusion(depth, yaw=0.3, pitch=0.15)
    assert np.array_equal(disocclusion(depth * 64, yaw=0.3, pitch=0.15), expected)
