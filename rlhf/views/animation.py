"""Frames to moving pictures: GIF by Pillow, MP4 by ffmpeg where it is installed."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rlhf.storage.atomic_files import atomic_path


def write_gif(frames: Sequence[np.ndarray], path: Path, *, frames_per_s: float) -> None:
    """Write frames, uint8 [H, W, 3] each, as an endless GIF of one palette per frame."""
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    with atomic_path(path) as temporary:
        images[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=round(1000 / frames_per_s),
            loop=0,
        )


def write_mp4(frames: Sequence[np.ndarray], path: Path, *, frames_per_s: float) -> str | None:
    """Write frames, uint8 [H, W, 3] each, as H.264; None where it was done, else the reason why not."""
    program = shutil.which("ffmpeg")
    if program is None:
        return "no MP4: ffmpeg is not installed"
    height, width = frames[0].shape[:2]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{frames_per_s:g}", "-i", "-"]
    # H.264 in the colours that every player knows needs even sides.
    form = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-f", "mp4"]
    with atomic_path(path) as temporary:
        command = [program, "-y", "-loglevel", "error", *source, *form, str(temporary)]
        done = subprocess.run(command, input=b"".join(f.tobytes() for f in frames), capture_output=True, check=False)
        if done.returncode == 0:
            return None
    path.unlink(missing_ok=True)
    reason = done.stderr.decode(errors="replace").strip().splitlines()
    return f"no MP4: ffmpeg says {reason[-1] if reason else done.returncode}"
