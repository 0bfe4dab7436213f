"""Reads depth maps from files, and converts disparity; depth is float64 [H, W], positive and finite."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from rlhf.errors import UserError

Kind = Literal["depth", "disparity"]
SUFFIXES = (".npy", ".npz", ".pfm", ".png")
GREY_MODES = ("L", "I", "I;16", "I;16B", "I;16L", "F")


@dataclass(frozen=True, kw_only=True)
class DepthSource:
    """Meaning of the numbers in a depth file."""

    kind: Kind = "depth"
    focal_px: float = 1.0
    """Disparity only: focal length of the rectified pair."""
    baseline: float = 1.0
    """Disparity only: distance of the two cameras, in the unit that depth is to have."""
    offset_px: float = 0.0
    """Disparity only: difference of the two principal points, added to every disparity."""
    is_mended: bool = False
    """Whether unknown values are filled from their surroundings; otherwise they are an error."""


def read_depth(path: Path, size: tuple[int, int], source: DepthSource) -> np.ndarray:
    """Loads a depth map for a picture of `size` (width, height).

    The formats are .npy, .npz (its only array, or the one named `depth` or `disparity`), .pfm of one channel, and grey
    .png (16 bits; 8 bits are read as they are). Raises UserError if the format or size is another, or if a value is not
    finite or not positive and `source.is_mended` is False.
    """
    values = _read_map(path)
    if values.shape != (size[1], size[0]):
        shape = "x".join(str(n) for n in values.shape[::-1])
        raise UserError(f"{path}: depth map is {shape}, image is {size[0]}x{size[1]}; make them equal")
    with np.errstate(invalid="ignore"):
        depth = values
        if source.kind == "disparity":
            depth = disparity_to_depth(
                values, focal_px=source.focal_px, baseline=source.baseline, offset_px=source.offset_px
            )
    if source.is_mended:
        return mend_depth(depth, str(path))
    return check_depth(depth, str(path), source.kind)


def check_depth(depth: np.ndarray, label: str, kind: Kind = "depth") -> np.ndarray:
    """Returns the depth map; raises UserError, with number and place of the faults, if a value is no depth."""
    is_known = np.isfinite(depth) & (depth > 0)
    if is_known.all():
        return depth
    row, column = (int(place[0]) for place in np.nonzero(~is_known))
    value = depth[row, column]
    reason = f"{int((~is_known).sum())} of {depth.size} pixels have no {kind} that is finite and above 0"
    raise UserError(
        f"{label}: {reason} (row {row}, column {column}: depth {value}); "
        "mend the map, or fill these pixels from their surroundings with --mend-depth"
    )


def mend_depth(depth: np.ndarray, label: str) -> np.ndarray:
    """Fills values that are not finite or not above 0 from the far side of their surroundings; see `fill_depth`."""
    from rlhf.views.cameras import camera_at_origin
    from rlhf.views.depth_filling import fill_depth
    from rlhf.views.surfaces import find_edges, find_joints
    from rlhf.views.warping import Warped

    with np.errstate(invalid="ignore"):
        known = np.isfinite(depth) & (depth > 0)
    if not known.any():
        raise UserError(f"{label}: no pixel has a depth that is finite and above 0; give another file")
    near, _ = find_edges(depth, known, find_joints(depth, known))
    picture = np.zeros((*depth.shape, 3), np.uint8)
    camera = camera_at_origin(depth.shape[1], depth.shape[0])
    return fill_depth(Warped(camera=camera, rgb=picture, depth=depth, hole=~known, near_edge=near))


def disparity_to_depth(
    disparity: np.ndarray, *, focal_px: float, baseline: float, offset_px: float = 0.0
) -> np.ndarray:
    """Returns z = f b / (d + offset) of a rectified pair, in the baseline's unit; infinite if d + offset is 0."""
    with np.errstate(divide="ignore"):
        return focal_px * baseline / (disparity + offset_px)


def depth_to_disparity(depth: np.ndarray, *, focal_px: float, baseline: float, offset_px: float = 0.0) -> np.ndarray:
    """Returns d = f b / z - offset in pixels; inverts `disparity_to_depth`."""
    return focal_px * baseline / depth - offset_px


def _read_map(path: Path) -> np.ndarray:
    """Returns the numbers of a file as float64 [H, W]; raises UserError if it is no map."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: a depth map is one of {', '.join(SUFFIXES)}, not {suffix or 'a file without suffix'}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: no readable file ({error.strerror or error}); name a depth map") from error
    try:
        values = {".png": _read_png, ".pfm": _read_pfm}.get(suffix, _read_numpy)(data)
    except (ValueError, OSError, KeyError, EOFError, SyntaxError, BadZipFile) as error:
        raise UserError(f"{path}: not a readable {suffix} depth map ({error})") from error
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise UserError(f"{path}: holds {values.dtype} {list(values.shape)}; a depth map is numbers [height, width]")
    return values.astype(np.float64)


def _read_numpy(data: bytes) -> np.ndarray:
    with io.BytesIO(data) as file:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        names = [name for name in found.files if name in ("depth", "disparity")] or found.files
        if len(names) != 1:
            raise ValueError(f"arrays {', '.join(found.files) or 'none'}; name one of them depth or disparity")
        return found[names[0]]


def _read_png(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        if image.mode not in GREY_MODES:
            raise ValueError(f"a picture with colours, mode {image.mode}; depth is grey, best of 16 bits")
        return np.asarray(image)


def _read_pfm(data: bytes) -> np.ndarray:
    """Reads a portable float map: `Pf`, width height, scale (negative: little-endian), rows from the bottom up."""
    match = re.match(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+(\S+)[^\S\n]*\n", data)
    if match is None:
        raise ValueError("no PFM header")
    if match[1] == b"PF":
        raise ValueError("three channels; depth has one")
    width, height = int(match[2]), int(match[3])
    kind = "<f4" if float(match[4]) < 0 else ">f4"
    values = np.frombuffer(data, kind, offset=match.end())
    if len(values) != width * height:
        raise ValueError(f"{len(values)} numbers for {width}x{height} pixels")
    return values.reshape(height, width)[::-1]
