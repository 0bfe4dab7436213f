"""Forward warping: renders pictures with depth for another camera, and marks the pixels that they do not show.

Every pixel is a piece of a surface and is splatted into the new picture. A z-buffer of points decides which surface
each new pixel shows; bilinear weights mix the colours of that surface's pieces. Stretched surfaces are subdivided
between neighbouring pixels, so that they do not crack. Gaps between surfaces are not filled, so disoccluded regions
stay holes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import binary_dilation, label

from rlhf.views.cameras import Camera, pixel_grid, project, unproject
from rlhf.views.surfaces import find_edges, find_joints, widen

SAME_SURFACE = 0.02
"""Relative difference of inverse depth within which pieces at one pixel belong to one surface."""
MAX_SUBDIVISION = 4
"""Largest number of pieces per pixel, across and down."""
HALF = 0.5 + 1e-6
"""Offset for rounding half up, robust to rounding errors."""
CHUNK = 1_000_000
"""Number of pieces per batch; larger batches need more memory, smaller ones more time."""
Splat = Literal["bilinear", "point"]


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A picture with depth."""

    camera: Camera
    rgb: np.ndarray
    """uint8 [H, W, 3]."""
    depth: np.ndarray
    """float64 [H, W], in the unit of the world; positive and finite where known."""
    known: np.ndarray
    """bool [H, W]: the pixels that are warped."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Warped:
    """The views as seen by a new camera."""

    camera: Camera
    rgb: np.ndarray
    """uint8 [H, W, 3], 0 in the hole."""
    depth: np.ndarray
    """float64 [H, W], NaN in the hole."""
    hole: np.ndarray
    """bool [H, W]: disoccluded, or outside of all views."""
    near_edge: np.ndarray
    """bool [H, W]: pixels on the near side of a jump in depth; a hole beside them continues behind them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pieces:
    """N points projected to the new picture."""

    u: np.ndarray
    v: np.ndarray
    inverse: np.ndarray
    """Inverse depth in the new camera."""
    values: np.ndarray
    """float32 [N, 5]: red, green, blue, near side of an edge, far side."""


def whole_view(camera: Camera, rgb: np.ndarray, depth: np.ndarray) -> View:
    """Returns a view whose known pixels are those with positive, finite depth."""
    with np.errstate(invalid="ignore"):
        return View(camera=camera, rgb=rgb, depth=depth, known=np.isfinite(depth) & (depth > 0))


def warp(
    views: Sequence[View], camera: Camera, *, splat: Splat = "bilinear", halo_px: int = 0, speck_px: int = 0
) -> Warped:
    """Renders all views together for `camera`; each pixel shows the nearest surface of any view.

    With `splat` "point" a pixel takes the colour of its nearest point; with "bilinear" it takes the mean of its
    surface's pieces by bilinear weights. A lens mixes colours at a jump in depth, so `halo_px` pixels on the far side
    of a jump become hole if they lie beside a hole. Islands of up to `speck_px` pixels within a hole become hole as
    well, since their depth lies between two surfaces.
    """
    shape = (camera.height_px, camera.width_px)
    nearest = np.zeros(shape)
    sums = np.zeros((shape[0] * shape[1], 7))
    # Pieces are cut twice, so that memory need not hold all pieces of a large photograph at once.
    for batch in _cut_views(views, camera, halo_px):
        np.maximum.at(nearest.reshape(-1), _pixel(batch, shape), batch.inverse)
    for batch in _cut_views(views, camera, halo_px):
        _accumulate(sums, batch, nearest, splat)
    seen = (sums[:, 6] > 0).reshape(shape)
    means = (sums[:, :6] / np.where(seen.reshape(-1), sums[:, 6], 1.0)[:, None]).reshape(*shape, 6)
    means, seen = _close_cracks(means, seen)
    seen = _drop_specks(seen, speck_px)
    near, far = (means[..., channel] > 0.5 for channel in (3, 4))
    if halo_px:
        seen = seen & ~(far & binary_dilation(~seen, np.ones((3, 3)), iterations=halo_px))
    depth = np.where(seen, 1 / np.where(seen, means[..., 5], 1.0), np.nan)
    rgb = np.where(seen[..., None], means[..., :3] + 0.5, 0).clip(0, 255).astype(np.uint8)
    return Warped(camera=camera, rgb=rgb, depth=depth, hole=~seen, near_edge=near & seen)


def _cut_views(views: Sequence[View], camera: Camera, halo_px: int) -> Iterator[_Pieces]:
    """Yields the pieces of all views in batches of about CHUNK."""
    gathered: list[_Pieces] = []
    for view in views:
        for batch in _cut_into_pieces(view, camera, halo_px):
            gathered.append(batch)
            if sum(len(part.u) for part in gathered) >= CHUNK:
                yield _join(gathered)
                gathered = []
    if gathered:
        yield _join(gathered)


def _join(parts: Sequence[_Pieces]) -> _Pieces:
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _Pieces.__annotations__}
    return _Pieces(**columns)


def _cut_into_pieces(view: View, camera: Camera, halo_px: int) -> Iterator[_Pieces]:
    """Yields every known pixel and, on stretched surfaces, points between it and its right and lower neighbours."""
    joints = find_joints(view.depth, view.known)
    near, far = find_edges(view.depth, view.known, joints)
    for _ in range(halo_px - 1):
        far = widen(far, joints) & ~near
    values = np.dstack([view.rgb, near, far]).astype(np.float32)
    inverse = 1 / np.where(view.known, view.depth, 1.0)
    u, v = pixel_grid(view.camera)
    yield _project_pieces(view, camera, u[view.known], v[view.known], inverse[view.known], values[view.known])
    is_whole = joints[0][:-1] & joints[0][1:] & joints[1][:, :-1] & joints[1][:, 1:]
    count = _pieces_across(view, camera, joints)
    corners = [(slice(None, -1), slice(None, -1)), (slice(None, -1), slice(1, None))]
    corners += [(slice(1, None), slice(None, -1)), (slice(1, None), slice(1, None))]
    for step in range(1, count**2):
        down, across = (part / count for part in divmod(step, count))
        weights = ((1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across)
        mixed = _mix([inverse[corner][is_whole] for corner in corners], weights)
        mixed_values = _mix([values[corner][is_whole] for corner in corners], weights)
        columns, rows = u[:-1, :-1][is_whole] + across, v[:-1, :-1][is_whole] + down
        yield _project_pieces(view, camera, columns, rows, mixed, mixed_values.astype(np.float32))


def _mix(arrays: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    return np.sum([weight * array for weight, array in zip(weights, arrays, strict=True)], axis=0)


def _pieces_across(view: View, camera: Camera, joints: tuple[np.ndarray, np.ndarray]) -> int:
    """Returns the number of pieces across the most stretched pixel of a surface; 1 without stretching."""
    u, v = pixel_grid(view.camera)
    columns, rows, _ = project(camera, unproject(view.camera, u, v, np.where(view.known, view.depth, np.nan)))
    is_inside = (columns > -1) & (columns < camera.width_px) & (rows > -1) & (rows < camera.height_px)
    longest = 1.0
    for axis, joint in ((1, joints[0]), (0, joints[1])):
        length = np.hypot(np.diff(columns, axis=axis), np.diff(rows, axis=axis))
        counted = joint & (is_inside[:, :-1] if axis == 1 else is_inside[:-1])
        longest = max(longest, float(np.max(length[counted], initial=1.0)))
    return min(int(np.ceil(longest - 1e-3)), MAX_SUBDIVISION)


def _project_pieces(
    view: View, camera: Camera, u: np.ndarray, v: np.ndarray, inverse: np.ndarray, values: np.ndarray
) -> _Pieces:
    columns, rows, depth = project(camera, unproject(view.camera, u, v, 1 / inverse))
    with np.errstate(invalid="ignore"):
        is_inside = (columns + HALF >= 0) & (columns + HALF < camera.width_px)
        is_inside &= (rows + HALF >= 0) & (rows + HALF < camera.height_px)
    return _Pieces(u=columns[is_inside], v=rows[is_inside], inverse=1 / depth[is_inside], values=values[is_inside])


def _pixel(batch: _Pieces, shape: tuple[int, int]) -> np.ndarray:
    """Returns the pixel of each piece as an index into the flat picture."""
    return np.floor(batch.v + HALF).astype(np.int64) * shape[1] + np.floor(batch.u + HALF).astype(np.int64)


def _accumulate(sums: np.ndarray, batch: _Pieces, nearest: np.ndarray, splat: Splat) -> None:
    """Adds the pieces of the nearest surface to `sums` [H W, 7]: five values, inverse depth, weight."""
    height, width = nearest.shape
    flat = nearest.reshape(-1)
    if splat == "point":
        pixel = _pixel(batch, nearest.shape)
        _add(sums, batch, pixel, (batch.inverse >= flat[pixel]).astype(float))
        return
    left, top = np.floor(batch.u + 1e-9), np.floor(batch.v + 1e-9)
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = left + right, top + below
        weight = (1 - np.abs(batch.u - column)).clip(0) * (1 - np.abs(batch.v - row)).clip(0)
        is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        pixel = np.where(is_inside, row * width + column, 0).astype(np.int64)
        shown = flat[pixel]
        belongs = is_inside & (shown > 0) & (np.abs(batch.inverse - shown) <= SAME_SURFACE * shown)
        _add(sums, batch, pixel, np.where(belongs & (weight > 1e-6), weight, 0.0))


def _add(sums: np.ndarray, batch: _Pieces, pixel: np.ndarray, weight: np.ndarray) -> None:
    chosen = weight > 0
    pixel, weight = pixel[chosen], weight[chosen]
    channels = [*batch.values[chosen].T, batch.inverse[chosen], np.ones(len(pixel))]
    for number, channel in enumerate(channels):
        sums[:, number] += np.bincount(pixel, weight * channel, minlength=len(sums))


def _drop_specks(seen: np.ndarray, largest_px: int) -> np.ndarray:
    """Returns `seen` without islands of up to `largest_px` pixels, unless only such islands exist."""
    islands, _ = label(seen)
    sizes = np.bincount(islands.ravel())
    sizes[0] = 0
    kept = sizes > largest_px
    return kept[islands] if kept.any() else seen


def is_seen_through(points: np.ndarray, view: View) -> np.ndarray:
    """Returns whether points [N, 3] lie in front of the surface that a view saw at their pixel: bool [N].

    Such points cannot be solid, since the view saw through them. A point must be nearer by more than SAME_SURFACE of
    the depth at its pixel. The result is False where the view has no known depth.
    """
    u, v, depth = project(view.camera, points)
    with np.errstate(invalid="ignore"):
        column, row = np.floor(u + HALF), np.floor(v + HALF)
        is_inside = (column >= 0) & (column < view.camera.width_px) & (row >= 0) & (row < view.camera.height_px)
    column, row = (np.where(is_inside, place, 0).astype(np.int64) for place in (column, row))
    seen = np.where(view.known, view.depth, 0.0)[row, column]
    return is_inside & (depth > 0) & (depth < seen * (1 - SAME_SURFACE))


def _close_cracks(means: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fills cracks: hole pixels with the same surface on both sides, left and right or above and below.

    A disoccluded gap of one pixel has a near side and a far side, so it stays a hole.
    """
    total, count = np.zeros_like(means), np.zeros(seen.shape)
    for axis in (0, 1):
        before, after = (np.roll(means, shift, axis=axis) for shift in (1, -1))
        both = np.roll(seen, 1, axis=axis) & np.roll(seen, -1, axis=axis) & ~seen
        both[(slice(None),) * axis + ([0, -1],)] = False
        larger = np.maximum(before[..., 5], after[..., 5])
        both &= np.abs(before[..., 5] - after[..., 5]) <= SAME_SURFACE * larger
        total += np.where(both[..., None], (before + after) / 2, 0)
        count += both
    is_crack = count > 0
    return np.where(is_crack[..., None], total / np.maximum(count, 1)[..., None], means), seen | is_crack
