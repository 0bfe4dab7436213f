"""Extends a photograph at its sides, with a GIF of its growth, as `rlhf extend` does."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from rlhf.config.run_config import RunConfig
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.policy_manifest import locate_policy
from rlhf.diffusion.tiles import Box
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_write, atomic_write_json
from rlhf.storage.decoding import MAX_PIXELS
from rlhf.storage.images import decode_image, save_png
from rlhf.storage.url_path import local_copy
from rlhf.views.growth import Band, Fill, Margins, fill_by_policy, grow, plan_bands

SCHEMA_VERSION = 1
"""Format version of `extension.json`."""
LEAST_SIDE_PX = 8
"""Least side of a photograph; smaller ones show nothing to continue."""
MAX_STEPS = 200
STEPS = 4
"""Default number of steps; fewer if steps would be thinner than LEAST_STEP_PX, more if they would be wide."""
LEAST_STEP_PX = 16
GIF_PX = 480
"""Longest side of the GIF's frames."""
GROWTH_S, FIRST_S, LAST_S = 3.0, 0.8, 2.0
"""Durations of the growth, of the first frame and of the last frame in the GIF, in seconds."""
UNPAINTED = 128
"""Grey value of pixels that are not painted yet."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of the photograph after a step."""

    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True)
class ExtensionRecord:
    """Content of `extension.json`."""

    photograph: str
    width_px: int
    """Width of the photograph as given."""
    height_px: int
    schema_version: int = SCHEMA_VERSION
    margins_px: Margins
    extended_width_px: int
    extended_height_px: int
    steps: list[Size]
    model: str
    """Base model: `tiny`, a pipeline folder, or a hub name."""
    policy: str | None
    """Policy folder; None for the base model itself."""
    policy_version: int
    native_px: int
    """Side of the square images that the model was made for."""
    num_inference_steps: int
    seed: int
    pictures: list[str]
    known_pixels_differ: int


def extend(
    photograph: Path,
    margins: Margins,
    out: Path,
    config: RunConfig,
    *,
    model: Path | None = None,
    step_px: int | None = None,
    samples: int = 1,
) -> list[Path]:
    """Extends a photograph of any size and returns the paths of the pictures.

    Writes `extended.png` (its known pixels are the photograph's, upright 8-bit RGB, bit for bit) and `growth.gif`,
    or `extended-0.png`, `growth-0.gif` and so on for several samples, and last `extension.json`. `model` is a path for
    `locate_policy`. Raises UserError if the photograph is unreadable, or if there is nothing, or too much, to paint.
    """
    pixels = read_photograph(photograph)
    bands, steps = _plan((pixels.shape[1], pixels.shape[0]), margins, step_px, samples)
    located, adapter = locate_policy(config.model, model)
    policy = load_policy(located, adapter)
    pictures, differing = _paint_samples(pixels, margins, bands, policy, config, samples, out)
    record = ExtensionRecord(
        photograph=str(photograph),
        width_px=pixels.shape[1],
        height_px=pixels.shape[0],
        margins_px=margins,
        extended_width_px=steps[-1].width_px,
        extended_height_px=steps[-1].height_px,
        steps=steps,
        model=located.path,
        policy=None if adapter is None else str(adapter),
        policy_version=policy.version,
        native_px=policy.native_px,
        num_inference_steps=config.evaluate.num_inference_steps,
        seed=config.seed,
        pictures=[path.name for path in pictures],
        known_pixels_differ=differing,
    )
    atomic_write_json(out / "extension.json", asdict(record))
    return pictures


def _plan(size: tuple[int, int], margins: Margins, step_px: int | None, samples: int) -> tuple[list[Band], list[Size]]:
    """Returns all bands, and the size after each step; raises UserError if an option is out of range."""
    bands = plan_bands(size, margins, count_steps(size, margins, step_px))
    if samples < 1:
        raise UserError(f"extend: {samples} samples are none; ask for 1 or more")
    return bands, [_size_of(band.extent) for band in bands if is_last_of_step(band, bands)]


def _paint_samples(
    pixels: np.ndarray, margins: Margins, bands: list[Band], policy: Policy, config: RunConfig, samples: int, out: Path
) -> tuple[list[Path], int]:
    """Writes all samples; returns their paths, and the number of known pixels that differ."""
    differing, pictures = 0, []
    denoising, key = config.evaluate.num_inference_steps, (config.seed, "extend")
    with progress_bar(stage="extend", total=samples * len(bands)) as bar:
        for index in range(samples):
            fill = fill_by_policy(policy, num_inference_steps=denoising, seed_key=key, sample_index=index)
            ending = f"-{index}" if samples > 1 else ""
            pictures.append(out / f"extended{ending}.png")
            differing += _extend_once(pixels, margins, bands, fill, bar, pictures[-1], out / f"growth{ending}.gif")
    return pictures, differing


def _extend_once(
    pixels: np.ndarray, margins: Margins, bands: list[Band], fill: Fill, bar: tqdm, picture: Path, gif: Path
) -> int:
    """Writes one picture and its GIF; returns the number of known pixels that differ from the photograph."""
    height, width = pixels.shape[:2]
    frames, differing = [frame(put_into(pixels, margins), _box(margins, width, height))], 0
    for painted in grow(pixels, margins, bands, fill):
        differing += painted.known_pixels_differ
        if is_last_of_step(painted.band, bands):
            frames.append(frame(painted.extended, painted.band.extent))
        bar.update()
    save_png(painted.extended, picture)
    save_gif(frames, gif)
    return differing


def read_photograph(path: Path) -> np.ndarray:
    """Loads an upright uint8 [H, W, 3]; raises UserError if it is unreadable or smaller than LEAST_SIDE_PX."""
    with local_copy(path) as local:
        image = decode_image(local, name=str(path))
    if min(image.size) < LEAST_SIDE_PX:
        raise UserError(
            f"{path}: {image.width}x{image.height} is too small; give {LEAST_SIDE_PX} pixels or more a side"
        )
    return np.asarray(image)


def count_steps(size: tuple[int, int], margins: Margins, step_px: int | None) -> int:
    """Returns the number of steps of at most `step_px` pixels.

    The default is STEPS, or more so that no step is wider than a quarter of the photograph's short side. Raises
    UserError if a margin is negative, all are 0, a step has no pixel, or there is too much to paint.
    """
    for side, margin in vars(margins).items():
        if margin < 0:
            raise UserError(f"extend: --{side} {margin} is negative; give the pixels to add, 0 for none")
    longest = max(vars(margins).values())
    if longest == 0:
        raise UserError("extend: nothing to extend; give --left, --right, --top or --bottom in pixels")
    wide, high = margins.enlarge(size)
    if wide * high > MAX_PIXELS:
        raise UserError(f"extend: {wide}x{high} is more than {MAX_PIXELS} pixels; add fewer")
    if step_px is not None and step_px < 1:
        raise UserError(f"extend: --step {step_px} adds nothing; give 1 pixel or more")
    steps = math.ceil(longest / (step_px or max(LEAST_STEP_PX, min(math.ceil(longest / STEPS), min(size) // 4))))
    if steps > MAX_STEPS:
        raise UserError(
            f"extend: {longest} pixels take {steps} steps, more than {MAX_STEPS}; raise --step, or add fewer"
        )
    return steps


def is_last_of_step(band: Band, bands: Sequence[Band]) -> bool:
    """Returns whether a step ends with this band."""
    place = bands.index(band)
    return place + 1 == len(bands) or bands[place + 1].step > band.step


def _box(margins: Margins, width: int, height: int) -> Box:
    return margins.left, margins.top, margins.left + width, margins.top + height


def put_into(pixels: np.ndarray, margins: Margins) -> np.ndarray:
    """Returns the photograph, uint8 [h, w, 3], with all margins unpainted."""
    added = ((margins.top, margins.bottom), (margins.left, margins.right), (0, 0))
    return np.pad(pixels, added, constant_values=UNPAINTED)


def _size_of(box: Box) -> Size:
    return Size(width_px=box[2] - box[0], height_px=box[3] - box[1])


def frame(extended: np.ndarray, extent: Box) -> Image.Image:
    """Returns a frame of the GIF, at most GIF_PX wide and high: pixels within `extent`, the rest in grey."""
    height, width = extended.shape[:2]
    scale = min(1.0, GIF_PX / max(height, width))
    left, top, right, bottom = extent
    shown = np.full_like(extended, UNPAINTED)
    shown[top:bottom, left:right] = extended[top:bottom, left:right]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(shown).resize(size, Image.Resampling.BOX)


def save_gif(frames: Sequence[Image.Image], path: Path) -> None:
    """Writes frames as an endless GIF with one palette and no dithering, so unchanged pixels cost no bytes.

    Pillow writes unchanged pixels as transparent if the palette has a free colour, so 255 of 256 are used. Its octree
    is nearer to photographs than its median cut, and quicker.
    """
    width, height = frames[0].size
    both = Image.new("RGB", (2 * width, height))
    both.paste(frames[0], (0, 0))
    both.paste(frames[-1], (width, 0))
    palette = both.quantize(255, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    first, *others = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in frames]
    between = round(1000 * min(0.5, GROWTH_S / len(frames)))
    durations = [round(1000 * FIRST_S), *[between] * (len(others) - 1), round(1000 * LAST_S)]
    options = {"save_all": True, "append_images": others, "duration": durations, "loop": 0}
    atomic_write(path, lambda temporary: first.save(temporary, format="GIF", **options))
