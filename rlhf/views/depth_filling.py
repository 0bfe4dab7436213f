"""Classical fills for the holes of a warped picture: depth, and colours as a baseline for models.

All fills use the far side only, since a disoccluded region is background, not more of the object.
"""

import numpy as np
from scipy import sparse
from scipy.ndimage import binary_dilation, distance_transform_edt, label, uniform_filter
from scipy.sparse.linalg import spsolve

from rlhf.errors import UserError
from rlhf.views.surfaces import find_joints
from rlhf.views.warping import Warped

NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))
NEARER = 0.1
"""Relative difference in depth by which an object must be nearer than the background of a hole to be in front."""
SLOPE_PX = 9
"""Side of the square window for averaging the slope of a surface."""


def fill_depth(warped: Warped) -> np.ndarray:
    """Returns the depth, float64 [H, W], with all holes filled; known depth stays.

    Inside a hole inverse depth solves Laplace's equation. Pixels of the far side are its boundary values. At the near
    side of a jump, and at the picture's edge, the boundary condition is the slope of the nearest far side. So a plane
    continues as a plane behind an object and beyond the picture's edge. A hole without a far side takes its boundary
    values from the near side. Filled depth is limited to between half the nearest known depth and twice the farthest.
    Raises UserError if no depth is known.
    """
    if not warped.hole.any():
        return warped.depth.copy()
    if warped.hole.all():
        raise UserError("nothing of the photograph is seen from there; choose smaller angles or shifts")
    known, hole = ~warped.hole, warped.hole
    inverse = np.where(known, 1 / np.where(known, warped.depth, 1.0), 0.0)
    far = known & ~_near_side(warped)
    holes, count = label(hole)
    anchors = _anchors(warped, far, known, holes, count)
    number = np.full(hole.shape, -1)
    number[hole] = np.arange(int(hole.sum()))
    system, target = _laplace(hole, anchors, inverse, number, _slopes(warped, far))
    filled = inverse.copy()
    filled[hole] = np.asarray(spsolve(system, target))
    return np.where(hole, 1 / filled.clip(inverse[known].min() / 2, 2 * inverse[known].max()), warped.depth)


def _near_side(warped: Warped) -> np.ndarray:
    """Returns the near side of jumps, dilated by one pixel of possibly mixed colour."""
    return binary_dilation(warped.near_edge, np.ones((3, 3))) & ~warped.hole


def _slopes(warped: Warped, far: np.ndarray) -> np.ndarray:
    """Returns the slope of inverse depth per pixel, down and to the right, [2, H, W], of the nearest far side.

    The slope is the mean over neighbours on one surface within SLOPE_PX, or 0 without neighbours.
    """
    inverse = np.where(far, 1 / np.where(far, warped.depth, 1.0), 0.0)
    across, down = find_joints(warped.depth, far)
    slopes = np.zeros((2, *far.shape))
    for slope, joint, axis in ((slopes[0], down, 0), (slopes[1], across, 1)):
        padding = [(0, 1), (0, 0)] if axis == 0 else [(0, 0), (0, 1)]
        counted = np.pad(joint, padding).astype(float)
        total = np.pad(np.where(joint, np.diff(inverse, axis=axis), 0.0), padding)
        share, mean = uniform_filter(counted, SLOPE_PX), uniform_filter(total, SLOPE_PX)
        slope[...] = np.where(share > 1e-9, mean / np.maximum(share, 1e-9), 0.0)
    if far.any():
        row, column = distance_transform_edt(~far, return_distances=False, return_indices=True)
        slopes = slopes[:, row, column]
    return slopes


def _anchors(warped: Warped, far: np.ndarray, known: np.ndarray, holes: np.ndarray, count: int) -> np.ndarray:
    """Returns bool [4, H, W]: whether a neighbour of a hole pixel is a boundary value, in the order of NEIGHBOURS."""
    beside_far = np.stack([warped.hole & _neighbour(far, *step) for step in NEIGHBOURS])
    beside_known = np.stack([warped.hole & _neighbour(known, *step) for step in NEIGHBOURS])
    has_far = np.zeros(count + 1, bool)
    has_far[holes[beside_far.any(axis=0)]] = True
    return np.where(has_far[holes], beside_far, beside_known)


def _neighbour(array: np.ndarray, down: int, right: int) -> np.ndarray:
    """Returns the array shifted so that each pixel holds its neighbour `down` and `right`; 0 beyond the edge."""
    height, width = array.shape
    padded = np.pad(array, 1)
    return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]


def _laplace(
    hole: np.ndarray, anchors: np.ndarray, inverse: np.ndarray, number: np.ndarray, slopes: np.ndarray
) -> tuple[sparse.csc_matrix, np.ndarray]:
    """Returns the linear system of all hole pixels: the changes towards the four neighbours of a pixel sum to 0.

    The change towards a hole or anchor pixel is the difference of values, elsewhere it is the slope.
    """
    size = int(hole.sum())
    diagonal, target = np.zeros(size), np.zeros(size)
    rows, columns = [], []
    for step, anchor in zip(NEIGHBOURS, anchors, strict=True):
        value, other = _neighbour(inverse, *step), _neighbour(number + 1, *step) - 1
        is_pair = hole & (other >= 0)
        diagonal += (anchor | is_pair)[hole]
        onwards = step[0] * slopes[0] + step[1] * slopes[1]
        target += np.where(anchor, value, np.where(is_pair, 0.0, onwards))[hole]
        rows.append(number[is_pair])
        columns.append(other[is_pair])
    row, column = np.concatenate(rows), np.concatenate(columns)
    pairs = sparse.csc_matrix((-np.ones(len(row)), (row, column)), shape=(size, size))
    return pairs + sparse.diags(diagonal, format="csc"), target


def fill_with_nearest_background(warped: Warped) -> np.ndarray:
    """Returns colours uint8 [H, W, 3]; each hole pixel copies the nearest pixel on the far side of a hole's border.

    A hole without a far side copies the near side.
    """
    if not warped.hole.any() or warped.hole.all():
        return warped.rgb.copy()
    row, column = _nearest_far_border(warped)
    return np.where(warped.hole[..., None], warped.rgb[row, column], warped.rgb)


def hide_near_side(warped: Warped) -> np.ndarray:
    """Returns the picture uint8 [H, W, 3] without the objects in front of its holes, as context for a model.

    Pixels nearer than the depth of the nearest hole pixel (from `fill_depth`) by more than NEARER take the colour of
    the nearest remaining pixel; otherwise a model would continue the object into the hole. The hole stays unchanged.
    """
    if not warped.hole.any() or warped.hole.all():
        return warped.rgb.copy()
    known, depth = ~warped.hole, fill_depth(warped)
    row, column = distance_transform_edt(known, return_distances=False, return_indices=True)
    hidden = known & ((depth * (1 + NEARER) < depth[row, column]) | _near_side(warped))
    if not (known & ~hidden).any():
        return warped.rgb.copy()
    row, column = distance_transform_edt(~(known & ~hidden), return_distances=False, return_indices=True)
    return np.where(hidden[..., None], warped.rgb[row, column], warped.rgb)


def _nearest_far_border(warped: Warped) -> tuple[np.ndarray, np.ndarray]:
    """Returns row and column, [H, W] each, of the nearest pixel on the far side of any hole's border."""
    known, holes = ~warped.hole, label(warped.hole)[0]
    far = known & ~_near_side(warped)
    has_far = np.isin(holes, holes[warped.hole & binary_dilation(far, np.ones((3, 3)))])
    source = far & binary_dilation(warped.hole, np.ones((3, 3)))
    source |= known & binary_dilation(warped.hole & ~has_far, np.ones((3, 3)))
    row, column = distance_transform_edt(~source, return_distances=False, return_indices=True)
    return row, column
