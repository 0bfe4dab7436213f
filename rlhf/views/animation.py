"""Moving pictures from frames: GIF by Pillow, MP4 by the ffmpeg that imageio-ffmpeg (extra `video`) brings along."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rlhf.storage.atomic_files import atomic_path

EVEN_SIDES = "pad=ceil(iw/2)*2:ceil(ih/2)*2"
"""Filter of ffmpeg; H.264 in yuv420p, which every player knows, needs even sides."""


def write_gif(frames: Sequence[np.ndarray], path: Path, *, frames_per_s: float) -> None:
    """Writes frames, uint8 [H, W, 3] each, as an endless GIF with one palette per frame."""
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    duration = round(1000 / frames_per_s)
    with atomic_path(path) as temporary:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)


def can_write_mp4() -> bool:
    """Returns whether the extra `video` is installed."""
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def write_mp4(frames: Sequence[np.ndarray], path: Path, *, frames_per_s: float) -> None:
    """Writes frames, uint8 [H, W, 3] each, as H.264 in an MP4 file; needs the extra `video`."""
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    with atomic_path(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            temporary,
            (width, height),
            fps=frames_per_s,
            codec="libx264",
            quality=None,
            macro_block_size=1,
            ffmpeg_log_level="error",
            output_params=["-vf", EVEN_SIDES, "-f", "mp4"],
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
