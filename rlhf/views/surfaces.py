"""Segments a depth map into surfaces: finds neighbouring pixels on one surface, and edges with occlusion.

All tests use inverse depth, which is linear in pixel coordinates on every plane.
"""

import numpy as np

EDGE = 0.01
"""Relative jump of inverse depth below which neighbours are always on one surface."""
STEEPEST = 0.25
"""Relative jump of inverse depth above which neighbours are never on one surface, even with an even slope."""
Sides = tuple[np.ndarray, np.ndarray]


def find_joints(depth: np.ndarray, known: np.ndarray) -> Sides:
    """Whether each pixel is one surface with its right and with its lower neighbour: bool [H, W-1] and [H-1, W].

    It is where inverse depth jumps by less than EDGE, or goes on as it did on one of the two sides (the line through
    the two pixels there meets the other pixel within EDGE) and the jump is under STEEPEST. Unknown pixels
    (`known` False) belong to none.
    """
    inverse = np.where(known, 1 / np.where(known, depth, 1.0), np.nan)
    return _joints(inverse), _joints(inverse.T).T


def _joints(inverse: np.ndarray) -> np.ndarray:
    """Finds joints along rows; NaN compares as False."""
    left, right = inverse[:, :-1], inverse[:, 1:]
    larger = np.maximum(left, right)
    padded = np.pad(inverse, ((0, 0), (1, 1)), constant_values=np.nan)
    before, after = padded[:, : left.shape[1]], padded[:, 3:]
    goes_on = np.fmin(np.abs(2 * left - before - right), np.abs(2 * right - after - left)) <= EDGE * larger
    jump = np.abs(right - left)
    return (jump <= EDGE * larger) | (goes_on & (jump <= STEEPEST * larger))


def find_edges(depth: np.ndarray, known: np.ndarray, joints: Sides) -> Sides:
    """Returns the pixels on the near side and on the far side of a jump, bool [H, W] each."""
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
    """Returns marked pixels, bool [H, W], together with their four neighbours on the same surface."""
    across, down = joints
    wider = marked.copy()
    wider[:, 1:] |= marked[:, :-1] & across
    wider[:, :-1] |= marked[:, 1:] & across
    wider[1:] |= marked[:-1] & down
    wider[:-1] |= marked[1:] & down
    return wider


def sharpen_edges(depth: np.ndarray, *, jump: float = 0.1, passes: int = 3) -> np.ndarray:
    """The depth map with its ramps made steps: estimators blur edges, and a ramp would be torn into loose points.

    Where inverse depth varies within a 3x3 neighbourhood by more than `jump` of its largest value, a pixel takes the
    nearer of the two extremes; `passes` times.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    inverse = 1 / depth
    for _ in range(passes):
        high, low = maximum_filter(inverse, 3), minimum_filter(inverse, 3)
        snapped = np.where(high - inverse < inverse - low, high, low)
        inverse = np.where(high - low > jump * high, snapped, inverse)
    return 1 / inverse
