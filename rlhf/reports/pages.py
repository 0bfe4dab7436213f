"""Parts shared by the HTML pages: templates, figures as text, pictures, and the machine."""

import base64
import math
import os
import platform
import re
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

import rlhf
from rlhf.reports.intervals import LEAST_PHOTOGRAPHS
from rlhf.storage.atomic_files import atomic_write_text
from rlhf.storage.images import encode_png

FEW_PHOTOGRAPHS = 30
"""Below this number of photographs the pages say that intervals are rough."""
MAX_PICTURE_PX = 256
"""Largest side of a picture on a page; larger ones are scaled down."""


def write_page(template: str, path: Path, **context: Any) -> Path:
    """Renders a template of `rlhf/reports/templates` into a file, whole or not at all; returns `path`.

    Templates also see `written` (the date), `machine`, `few` and `too_few` (numbers of photographs), and the filters
    `show` and `duration`.
    """
    environment = Environment(loader=PackageLoader("rlhf.reports"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"show": lambda v, spec: show(v, spec).replace("-", "−"), "duration": show_duration}
    common = {"written": date.today(), "machine": describe_machine()}
    common |= {"few": FEW_PHOTOGRAPHS, "too_few": LEAST_PHOTOGRAPHS}
    page = environment.get_template(template).render(common | context)
    # File names may hold bytes that are not UTF-8; they arrive as surrogates, which cannot be written.
    atomic_write_text(path, page.encode("utf-8", "replace").decode())
    return path


def show(value: float | None, spec: str) -> str:
    """Formats a figure, or returns "n/a" if it could not be measured."""
    return "n/a" if value is None or not math.isfinite(value) else format(value, spec)


def show_duration(duration_s: float) -> str:
    """Formats seconds for a reader, e.g. `4 min 02 s`."""
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    minutes, seconds = divmod(round(duration_s), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {seconds:02d} s"


def picture_uri(picture: Image.Image) -> str:
    """Returns a picture as a PNG data URI, scaled down to `MAX_PICTURE_PX`."""
    picture.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX), Image.Resampling.LANCZOS)
    return data_uri(encode_png(picture), "png")


def show_hole(picture: Image.Image, hole: np.ndarray) -> Image.Image:
    """Returns the picture with its hole, bool [H, W], made transparent."""
    masked = picture.copy()
    masked.putalpha(Image.fromarray(np.where(hole, 0, 255).astype(np.uint8)))
    return masked


def data_uri(data: bytes, kind: str) -> str:
    """Returns the bytes of an image of type `kind`, such as `png` or `svg+xml`, as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def describe_machine() -> dict[str, str]:
    """Returns the processor, the accelerators and the versions of the main packages."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return {
        "processor": models[0] if models else platform.machine(),
        "CPUs": str(os.cpu_count()),
        "GPUs": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
        "prefpaint-ray": rlhf.__version__,
        "python": platform.python_version(),
    } | {name: version(name) for name in ("torch", "ray", "diffusers", "deepspeed", "transformers", "peft")}
