"""Segments a depth map into surfaces: finds neighbouring pixels on the same surface, and edges with occlusion.

All tests use inverse depth, since it is linear in pixel coordinates on every plane.
"""

import numpy as np

EDGE = 0.01
"""Relative jump of inverse depth below which neighbours are always on the same surface."""
STEEPEST = 0.25
"""Relative jump of inverse depth above which neighbours are never on the same surface, even on a constant slope."""
Sides = tuple[np.ndarray, np.ndarray]
"""Two bool maps, such as those for right and lower neighbours."""


def find_joints(depth: np.ndarray, known: np.ndarray) -> Sides:
    """Finds the pixels on the same surface as their right and their lower neighbour: bool [H, W-1] and [H-1, W].

    Two neighbours are on the same surface in either of two cases: their inverse depths differ by less than EDGE; or
    they differ by less than STEEPEST, and the line through one of them and the pixel before it meets the other within
    EDGE. A pixel of unknown depth (`known` False) is on no surface.
    """
    inverse = np.where(known, 1 / np.where(known, depth, 1.0), np.nan)
    return _joints(inverse), _joints(inverse.T).T


def _joints(inverse: np.ndarray) -> np.ndarray:
    """Finds joints along rows; a comparison with NaN is False."""
    left, right = inverse[:, :-1], inverse[:, 1:]
    larger = np.maximum(left, right)
    padded = np.pad(inverse, ((0, 0), (1, 1)), constant_values=np.nan)
    before, after = padded[:, : left.shape[1]], padded[:, 3:]
    goes_on = np.fmin(np.abs(2 * left - before - right), np.abs(2 * right - after - left)) <= EDGE * larger
    jump = np.abs(right - left)
    return (jump <= EDGE * larger) | (goes_on & (jump <= STEEPEST * larger))


def find_edges(depth: np.ndarray, known: np.ndarray, joints: Sides) -> Sides:
    """Returns the pixels on the near side and on the far side of a jump in depth, bool [H, W] each."""
    near, far = np.zeros(depth.shape, bool), np.zeros(depth.shape, bool)
    first, second = (slice(None), slice(None, -1)), (slice(None), slice(1, None))
    for a, b, joint in ((first, second, joints[0]), (first[::-1], second[::-1], joints[1])):
        is_jump = ~joint & known[a] & known[b]
        is_first_near = depth[a] < depth[b]
        near[a] |= is_jump & is_first_near
        far[b] |= is_jump & is_first_near
        near[b] |= is_jump & ~is_first_near
        far[a] |= is_jump & ~is_first_near
    return near, far


def widen(marked: np.ndarray, joints: Sides) -> np.ndarray:
    """Adds to the marked pixels, bool [H, W], their four neighbours on the same surface."""
    across, down = joints
    wider = marked.copy()
    wider[:, 1:] |= marked[:, :-1] & across
    wider[:, :-1] |= marked[:, 1:] & across
    wider[1:] |= marked[:-1] & down
    wider[:-1] |= marked[1:] & down
    return wider


def sharpen_edges(depth: np.ndarray, *, jump: float = 0.1, passes: int = 3) -> np.ndarray:
    """Replaces ramps in a depth map by steps. Estimators blur edges, and warping would tear a ramp into loose points.

    If inverse depth varies within a pixel's 3x3 neighbourhood by more than `jump` of its largest value, the pixel takes
    the closer of the two extremes. This is repeated `passes` times.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    inverse = 1 / depth
    for _ in range(passes):
        high, low = maximum_filter(inverse, 3), minimum_filter(inverse, 3)
        snapped = np.where(high - inverse < inverse - low, high, low)
        inverse = np.where(high - low > jump * high, snapped, inverse)
    return 1 / inverse
