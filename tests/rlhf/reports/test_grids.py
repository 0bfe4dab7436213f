"""Grids of pictures of one size and of several."""

from PIL import Image

from rlhf.reports.grids import image_grid


def test_pictures_of_several_sizes_lie_whole_in_cells_of_the_widest_and_highest() -> None:
    low, high = Image.new("RGB", (6, 2), "red"), Image.new("RGB", (2, 4), "blue")
    grid = image_grid([[low, high], [high]], zoom=2, gap_px=1)
    assert grid.size == (12 + 1 + 12, 8 + 1 + 8)
    assert sum(grid.getpixel((x, y)) == (255, 0, 0) for x in range(25) for y in range(17)) == 4 * 6 * 2
    assert sum(grid.getpixel((x, y)) == (0, 0, 255) for x in range(25) for y in range(17)) == 2 * 4 * 2 * 4
    assert grid.getpixel((13, 0)) == grid.getpixel((0, 9)) == (0, 0, 255)
