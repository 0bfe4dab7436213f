"""Moving pictures from frames: GIF by Pillow, MP4 by the ffmpeg that imageio-ffmpeg (extra `video`) brings along."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_path

EVEN_SIDES = "pad=ceil(iw/2)*2:ceil(ih/2)*2"
"""Filter of ffmpeg; H.264 in yuv420p, which every player knows, needs even sides."""


def write_gif(frames: Sequence[np.ndarray], path: Path, *, frames_per_s: float) -> None:
    """Writes frames, uint8 [H, W, 3] each, as an endless GIF with one palette per frame."""
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    duration = round(1000 / frames_per_s)
    with atomic_path(path) as temporary:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)


def write_mp4(frames: Sequence[np.ndarray], path: Path, *, frames_per_s: float) -> None:
    """Writes frames, uint8 [H, W, 3] each, as H.264 in an MP4 file.

    Raises UserError if the extra `video` or its ffmpeg is missing, or ffmpeg fails or writes nothing; a previous file
    then stays unchanged.
    """
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: imageio-ffmpeg is not installed; pip install 'prefpaint-ray[video]'") from error
    height, width = frames[0].shape[:2]
    arguments = ["-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    arguments += ["-r", str(frames_per_s), "-i", "-", "-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p"]
    pixels = b"".join(np.ascontiguousarray(frame).tobytes() for frame in frames)
    with atomic_path(path) as temporary:
        try:
            command = [imageio_ffmpeg.get_ffmpeg_exe(), *arguments, "-vf", EVEN_SIDES, "-f", "mp4", str(temporary)]
            done = subprocess.run(command, input=pixels, capture_output=True, check=False)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: ffmpeg cannot be started ({error}); install imageio-ffmpeg again") from error
        if done.returncode or not temporary.stat().st_size:
            told = done.stderr.decode(errors="replace").strip().splitlines()
            reason = told[-1] if told else f"exit code {done.returncode}"
            raise UserError(f"{path}: ffmpeg failed ({reason}); check what IMAGEIO_FFMPEG_EXE names, or use the GIF")
