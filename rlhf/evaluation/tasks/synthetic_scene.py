"""Synthetic scenes with exact depth from any camera: the ground truth that photographs lack.

A scene is a room with textured boxes and spheres, rendered by ray casting. Nothing reflects and the light does not
move, so a point has the same colour from every camera.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlhf.views.cameras import Camera, pixel_grid
from rlhf.views.warping import View

SUPERSAMPLING = 3
"""Number of rays per pixel, across and down, whose colours are averaged; depth is that of the pixel's centre."""
LIGHT = np.array([-0.4, -0.8, -0.45])
"""Direction towards the light."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Texture:
    """Colour of every point: two colours in cells, with noise."""

    colours: np.ndarray
    """float64 [2, 3], 0-255."""
    cell: float
    """Side of a cell, in the scene's unit."""
    kind: str
    """`checks`, `stripes` or `waves`."""
    phase: np.ndarray
    """Shift of the pattern, float64 [3]."""

    def colour(self, points: np.ndarray) -> np.ndarray:
        """Returns colours float64 [N, 3] of points [N, 3]."""
        place = points / self.cell + self.phase
        if self.kind == "checks":
            share = np.floor(place + 1e-9).sum(axis=1) % 2
        elif self.kind == "stripes":
            share = np.floor(place @ np.array([1.0, 0.35, 0.7])) % 2
        else:
            share = 0.5 + 0.25 * (np.sin(2 * place).sum(axis=1) / 1.5)
        grain = np.sin(7.3 * place[:, 0]) * np.sin(6.1 * place[:, 1]) * np.sin(5.7 * place[:, 2])
        return self.colours[0] + share.clip(0, 1)[:, None] * (self.colours[1] - self.colours[0]) + 14 * grain[:, None]


class Thing(Protocol):
    """Object that a ray can hit."""

    @property
    def texture(self) -> Texture:
        """Texture of the surface."""

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns distances [N] in lengths of the rays [N, 3], infinite for a miss, and normals [N, 3]."""

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Returns distances [N] of points [N, 3] from the surface."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sphere:
    """Ball."""

    centre: np.ndarray
    radius: float
    texture: Texture

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solves |o + t r - c| = radius for the nearer root."""
        offset = origin - self.centre
        a, b, c = (rays**2).sum(1), rays @ offset, offset @ offset - self.radius**2
        root = b**2 - a * c
        distance = np.where(root >= 0, (-b - np.sqrt(root.clip(0))) / a, np.inf)
        distance = np.where(distance > 0, distance, np.inf)
        points = origin + np.where(np.isfinite(distance), distance, 0.0)[:, None] * rays
        return distance, (points - self.centre) / self.radius

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Returns distances [N] of points [N, 3] from the surface."""
        return np.abs(np.linalg.norm(points - self.centre, axis=1) - self.radius)


@dataclass(frozen=True, kw_only=True, eq=False)
class Box:
    """Box along the axes; seen from inside, it is a room."""

    low: np.ndarray
    high: np.ndarray
    texture: Texture
    is_room: bool = False

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Intersects by the slab method (Kay and Kajiya 1986)."""
        slopes = np.where(np.abs(rays) < 1e-12, 1e-12, rays)
        first, second = (self.low - origin) / slopes, (self.high - origin) / slopes
        entries, exits = np.minimum(first, second), np.maximum(first, second)
        entry, leave = entries.max(axis=1), exits.min(axis=1)
        side = exits.argmin(axis=1) if self.is_room else entries.argmax(axis=1)
        distance = leave if self.is_room else entry
        is_hit = (entry < leave) & (distance > 0)
        normals = np.zeros_like(rays)
        rows = np.arange(len(rays))
        normals[rows, side] = -np.sign(slopes[rows, side])
        return np.where(is_hit, distance, np.inf), normals

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Returns distances [N] of points [N, 3] from the surface."""
        beyond = np.abs(points - (self.low + self.high) / 2) - (self.high - self.low) / 2
        return np.where((beyond <= 0).all(1), -beyond.max(1), np.linalg.norm(beyond.clip(0), axis=1))


def make_scene(seed: int) -> list[Thing]:
    """Returns a random room, 9 long and 6 wide, with boxes on its floor and balls.

    The floor lies at y = 1 and the back wall at z = 6; objects lie between z = 2.4 and 4.6.
    """
    rng = np.random.default_rng(seed)
    room = Box(
        low=np.array([-3.0, -1.6, -3.0]), high=np.array([3.0, 1.0, 6.0]), texture=_texture(rng, 0.55), is_room=True
    )
    things: list[Thing] = [room]
    places = rng.permutation(np.linspace(-1.3, 1.3, 5))
    for number in range(int(rng.integers(4, 6))):
        x, z = places[number] + rng.uniform(-0.15, 0.15), rng.uniform(2.4, 4.6)
        if number < rng.integers(2, 4):
            half, height = rng.uniform(0.2, 0.4), rng.uniform(0.5, 1.5)
            low, high = np.array([x - half, 1.0 - height, z - half]), np.array([x + half, 1.0, z + half])
            things.append(Box(low=low, high=high, texture=_texture(rng, 0.25)))
        else:
            radius = rng.uniform(0.22, 0.42)
            centre = np.array([x, 1.0 - radius - rng.uniform(0, 0.8), z])
            things.append(Sphere(centre=centre, radius=radius, texture=_texture(rng, 0.2)))
    return things


def _texture(rng: np.random.Generator, cell: float) -> Texture:
    kind = str(rng.choice(["checks", "stripes", "waves"]))
    colours = rng.uniform(40, 230, (2, 3))
    return Texture(colours=colours, cell=cell * rng.uniform(0.7, 1.3), kind=kind, phase=rng.uniform(0, 1, 3))


def surface_distance(things: Sequence[Thing], points: np.ndarray) -> np.ndarray:
    """Returns the exact distances [N] of points [N, 3] from the nearest surface of the scene."""
    return np.min([thing.distance(points) for thing in things], axis=0)


def render(things: Sequence[Thing], camera: Camera) -> View:
    """Renders the view of `camera`: shaded colours, and the exact depth of every pixel's centre."""
    u, v = pixel_grid(camera)
    depth, _ = _cast(things, camera, u, v)
    offsets = (np.arange(SUPERSAMPLING) + 0.5) / SUPERSAMPLING - 0.5
    colours = [_cast(things, camera, u + across, v + down)[1] for across in offsets for down in offsets]
    rgb = (np.mean(colours, axis=0) + 0.5).clip(0, 255).astype(np.uint8)
    return View(camera=camera, rgb=rgb, depth=depth, known=np.isfinite(depth))


def _cast(things: Sequence[Thing], camera: Camera, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth [H, W] and colours float64 [H, W, 3] along the rays of columns u and rows v; rays have z = 1."""
    x, y = ((w - c) / camera.focal_px for w, c in zip((u, v), camera.centre_px, strict=True))
    rays = (np.stack([x, y, np.ones_like(x)], axis=-1) @ camera.rotation).reshape(-1, 3)
    depth, colours = np.full(len(rays), np.inf), np.zeros((len(rays), 3))
    towards = LIGHT / np.linalg.norm(LIGHT)
    for thing in things:
        distance, normals = thing.hit(camera.position, rays)
        first = distance < depth
        points = camera.position + distance[first][:, None] * rays[first]
        shade = 0.75 + 0.25 * (normals[first] @ towards)
        colours[first] = thing.texture.colour(points) * shade[:, None]
        depth[first] = distance[first]
    return depth.reshape(u.shape), colours.clip(0, 255).reshape(*u.shape, 3)
