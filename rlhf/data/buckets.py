"""Sizes of prompts: buckets of one area and several aspect ratios, and batches of prompts of one size.

As in SDXL (arXiv:2307.01952, appendix I) and in LoRA trainers, sides of buckets are multiples of a step, and their area
is at most that of the square. Deviation: each short side has its longest other side alone, so there are fewer buckets.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import log

Size = tuple[int, int]
"""Height and width in pixels."""


def list_buckets(size_px: int, step_px: int) -> list[Size]:
    """Returns the sizes with sides of multiples of `step_px` and at most `size_px`^2 pixels, from low to high ones.

    Short sides reach from half of `size_px`, a multiple of the step, up to it; the other side is as long as it can be.
    """
    shorts = range(-(-size_px // 2 // step_px) * step_px, size_px + 1, step_px)
    low = [(short, size_px**2 // short // step_px * step_px) for short in shorts]
    return low + [(height, width) for width, height in reversed(low) if width != height]


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """Returns the bucket whose aspect ratio is nearest to that of a photograph of this size, as a quotient."""
    return min(buckets, key=lambda bucket: abs(log(bucket[0] * size[1] / (bucket[1] * size[0]))))


def batches_of_one_size(names: Iterable[str], sizes: Mapping[str, Size], count: int) -> list[tuple[str, ...]]:
    """Splits prompts into batches of at most `count` of one size; sizes and prompts keep the order of `names`."""
    own: dict[Size, list[str]] = {}
    for name in names:
        own.setdefault(sizes[name], []).append(name)
    return [tuple(same[i : i + count]) for same in own.values() for i in range(0, len(same), count)]


def format_buckets(sizes: Iterable[Size]) -> str:
    """Returns a table of the sizes with their numbers of prompts, from low to high ones."""
    counts = Counter(sizes)
    lines = ["width x height  ratio   pixels  prompts"]
    for height, width in sorted(counts, key=lambda size: (size[0] / size[1], size)):
        sides, ratio = f"{width} x {height}", f"{width / height:.2f}"
        lines.append(f"{sides:>14}  {ratio:>5}  {width * height:>7}  {counts[height, width]:>7}")
    return "\n".join(lines)
