"""A small room with exact truth: ray-cast in numpy from given poses, textured so that features can be tracked.

The camera stands inside a box, looking along +z at the far wall and a ball in front of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from marigold3d.camera import pixel_grid, ray_grid
from marigold3d.rigid import transform
from marigold3d.types import DepthMap, Domain, Intrinsics, RelativeDepth
from marigold3d.video import write_video

ROOM = np.array([[-2.2, -1.4, -1.5], [2.2, 1.3, 3.2]])  # opposite corners, scene units
BALL, RADIUS = np.array([0.3, 0.45, 2.0]), 0.5
LATTICE = np.random.default_rng(5).uniform(size=(48, 48, 48, 3)).astype(np.float32)  # of the texture
FPS = 10


def camera(width: int = 96, height: int = 72, fov_x_deg: float = 65.0) -> Intrinsics:
    return Intrinsics.from_fov(fov_x_deg, width, height)


def look(centre: Sequence[float], yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """T_world_camera (4, 4) of a camera at `centre`, turned by angles in radians."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("yxz", [yaw, pitch, roll]).as_matrix()
    T[:3, 3] = centre
    return T


def walk(count: int, length: float = 1.2) -> np.ndarray:
    """(count, 4, 4): a hand-held step to the right that keeps the ball in view."""
    s = np.linspace(-0.5, 0.5, count)
    return np.stack(
        [
            look((length * x, 0.06 * np.sin(7 * x), 0.25 * x + 0.1 * x * x), -0.35 * x, 0.05 * np.cos(5 * x), 0.03 * x)
            for x in s
        ]
    )


def pan(count: int, angle: float = 0.6) -> np.ndarray:
    """(count, 4, 4): a turn on the spot, without parallax."""
    return np.stack([look((0, 0, 0), a) for a in np.linspace(-angle / 2, angle / 2, count)])


def depth_of(camera: Intrinsics, T_world_camera: np.ndarray) -> np.ndarray:
    """Exact z-depth (H, W) float32."""
    rays = ray_grid(camera).astype(float) @ T_world_camera[:3, :3].T  # (H, W, 3), unit z in the camera
    origin = T_world_camera[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        walls = np.nanmin(np.where(rays > 0, ROOM[1] - origin, ROOM[0] - origin) / rays, axis=2)
    to_ball = origin - BALL
    a, b, c = (rays**2).sum(2), rays @ to_ball, to_ball @ to_ball - RADIUS**2
    root = b * b - a * c
    ball = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
    return np.where(ball > 0, np.minimum(walls, ball), walls).astype(np.float32)


def distance_to_surface(points: np.ndarray) -> np.ndarray:
    """Distance (N,) of world points (N, 3) to the nearest surface of the scene."""
    walls = np.abs(points[:, None] - ROOM).min((1, 2))
    return np.minimum(walls, np.abs(np.linalg.norm(points - BALL, axis=1) - RADIUS))


def colour_of(points: np.ndarray) -> np.ndarray:
    """(..., 3) in 0..1 of world points: three octaves of value noise."""
    out = np.zeros(points.shape, np.float32)
    for cell, share in ((0.5, 0.25), (0.13, 0.4), (0.05, 0.35)):
        at = np.moveaxis(points / cell, -1, 0)
        out += share * np.stack([map_coordinates(LATTICE[..., k], at, order=1, mode="grid-wrap") for k in range(3)], -1)
    return np.clip((out - 0.5) * 2.2 + 0.5, 0.04, 1)


def render(camera: Intrinsics, T_world_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """rgb (H, W, 3) uint8 and exact z-depth (H, W) float32."""
    depth = depth_of(camera, T_world_camera)
    points = ray_grid(camera).astype(float) * depth[..., None]
    return (colour_of(transform(T_world_camera, points)) * 255).round().astype(np.uint8), depth


@dataclass(frozen=True, eq=False)
class Clip:
    """A rendered clip in memory: `T_world_camera` (T, 4, 4) and what the camera saw."""

    camera: Intrinsics
    T_world_camera: np.ndarray

    @cached_property
    def frames(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(rgb, depth) of every frame."""
        return [render(self.camera, T) for T in self.T_world_camera]

    def write(self, path: Path) -> Path:
        write_video(path, (rgb for rgb, _ in self.frames), FPS)
        return path

    @property
    def timestamps_s(self) -> np.ndarray:
        return np.arange(len(self.T_world_camera)) / FPS


class Oracle:
    """A depth estimator that knows a clip: it finds the frame it is shown and gives its depth, bent as networks bend.

    Each frame has a scale and shift of its own, and the same low-frequency error of `bend` in log depth.
    `seen` counts the frames it was asked for.
    """

    name = "oracle"

    def __init__(self, clip: Clip, domain: Domain = "disparity", bend: float = 0.0) -> None:
        self.domain = domain
        self.seen: list[int] = []
        self._clip, self._bend = clip, bend
        self._thumbnails = np.stack([_thumbnail(rgb) for rgb, _ in clip.frames])

    def provenance(self) -> dict[str, str]:
        return {"model": self.name, "weights_sha256": "0", "licence": "none", "bend": str(self._bend)}

    def estimate(self, rgb: np.ndarray) -> list[RelativeDepth]:
        return [self._one(frame) for frame in rgb]

    def _one(self, rgb: np.ndarray) -> RelativeDepth:
        index = int(np.abs(self._thumbnails - _thumbnail(rgb)).mean((1, 2, 3)).argmin())
        self.seen.append(index)
        return corrupted(self._clip.frames[index][1], self.domain, index, self._bend)


def corrupted(depth: np.ndarray, domain: Domain, seed: int, bend: float = 0.0) -> RelativeDepth:
    """What a network might say of `depth` (H, W): a random affine map in `domain`, the log depth bent smoothly."""
    rng = np.random.default_rng(seed)
    scale, shift = rng.uniform(0.5, 2.0), rng.uniform(-0.3, 0.3)
    z = depth * np.exp(bend * wave(depth.shape))
    y = {"disparity": 1 / z, "log_depth": np.log(z)}.get(domain, z)
    if domain == "metric":
        return RelativeDepth(z.astype(np.float32), domain)
    if domain == "log_depth":
        return RelativeDepth((y + shift).astype(np.float32), domain)
    return RelativeDepth(((y - shift) / scale).astype(np.float32), domain)


def wave(shape: tuple[int, int]) -> np.ndarray:
    """(H, W) smooth, between -1 and 1: half a period across each side."""
    height, width = shape
    uv = pixel_grid(width, height) / (width, height)
    return np.cos(np.pi * uv[..., 0]) * np.cos(np.pi * uv[..., 1])


def depth_maps(clip: Clip, share: float = 0.02) -> list[DepthMap]:
    """The exact depth of every frame, with a sigma of `share` of it."""
    return [DepthMap(z, np.ones(z.shape, bool), np.float32(share) * z) for _, z in clip.frames]


def _thumbnail(rgb: np.ndarray) -> np.ndarray:
    height, width = (n // 8 * 8 for n in rgb.shape[:2])
    return rgb[:height, :width].reshape(8, height // 8, 8, width // 8, 3).mean((1, 3))
