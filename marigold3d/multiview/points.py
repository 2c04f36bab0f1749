"""Where a keyframe has texture that can be found again, how deep it lies, and which other keyframes see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter

from ..camera import normalised, project
from ..rigid import inverse, transform
from ..types import Array, DepthMap, FloatImage, Intrinsics
from .sizes import reduced

HALF = 4  # px: windows are 9x9
CELL = 16  # px: one point, the best textured, of every such square
BLUR_PX = 0.7  # of the pictures: bilinear sampling is accurate only on smooth ones
LEAST_TEXTURE = 3.0  # grey levels a pixel: root of the gradient tensor's weaker eigenvalue
FLAT = 0.15  # range of log depth within a window: more is an edge, whose two sides move apart
DEPTH_SHARE = 0.1  # sigma of depth maps that have none, share of the depth
LEAST_OVERLAP = 0.5  # share of a keyframe's view that a neighbour must see
MOST_TURN_DEG = 35.0
OVERLAP_POINTS = 5  # a side


@dataclass(frozen=True, eq=False)
class Points:
    """Textured pixels of keyframes: frame (P,), uv (P, 2) px, inverse_depth (P,) and its sigma (P,), 1/scene units."""

    frame: NDArray[np.int64]
    uv: Array
    inverse_depth: Array
    sigma: Array

    def __len__(self) -> int:
        return len(self.frame)

    @classmethod
    def joined(cls, parts: Sequence[Points]) -> Points:
        """All the points of several keyframes."""
        if not parts:
            return cls(np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros(0), np.zeros(0))
        fields = ([getattr(p, name) for p in parts] for name in ("frame", "uv", "inverse_depth", "sigma"))
        return cls(*(np.concatenate(f) for f in fields))

    @property
    def median_depth(self) -> float:
        """Scene units; 1 without points."""
        return float(1 / np.median(self.inverse_depth)) if len(self) else 1.0


@dataclass(frozen=True, eq=False)
class Picture:
    """A keyframe's gray picture (H, W), 0..255, slightly blurred."""

    gray: FloatImage

    @classmethod
    def of(cls, gray: NDArray[np.uint8]) -> Picture:
        return cls(gaussian_filter(gray.astype(np.float32), BLUR_PX))

    @property
    def gradient(self) -> FloatImage:
        """(2, H, W) along u and v, grey levels a pixel."""
        v, u = np.gradient(self.gray)
        return np.stack([u, v]).astype(np.float32)

    @property
    def texture(self) -> FloatImage:
        """(H, W): root of the gradient tensor's smaller eigenvalue over a window (Shi and Tomasi, CVPR 1994)."""
        u, v = self.gradient
        uu, uv, vv = (gaussian_filter(product, HALF / 2) for product in (u * u, u * v, v * v))
        smaller = 0.5 * (uu + vv) - np.hypot(0.5 * (uu - vv), uv)
        return np.sqrt(np.maximum(smaller, 0))


def find_points(frame: int, picture: Picture, depth: DepthMap, cell: int = CELL) -> Points:
    """The best textured pixel of every cell whose window lies on one surface of `depth` (any size, same view)."""
    height, width = picture.gray.shape
    depth = reduced(depth, width, height)
    z, valid = depth.depth, depth.valid
    log_z = np.log(np.where(valid, z, 1.0))
    window = 2 * HALF + 1
    flat = maximum_filter(log_z, window) - minimum_filter(log_z, window) < FLAT
    texture = np.where(valid & flat, picture.texture, 0)
    texture[: HALF + 1] = texture[-HALF - 1 :] = 0
    texture[:, : HALF + 1] = texture[:, -HALF - 1 :] = 0
    down, across = height // cell, width // cell
    top, left = (height - down * cell) // 2, (width - across * cell) // 2
    cells = texture[top : top + down * cell, left : left + across * cell].reshape(down, cell, across, cell)
    squares = np.moveaxis(cells, 1, 2).reshape(-1, cell * cell)
    best = squares.argmax(1)
    square = np.flatnonzero(squares.max(1) > LEAST_TEXTURE)
    row = top + square // across * cell + best[square] // cell
    column = left + square % across * cell + best[square] % cell
    rho = 1 / z[row, column].astype(float)
    share = np.full(len(rho), DEPTH_SHARE)
    if depth.sigma is not None:
        share = depth.sigma[row, column] * rho
    return Points(np.full(len(rho), frame), np.stack([column, row], 1) + 0.5, rho, share * rho)


def neighbours(T_world_camera: Array, camera: Intrinsics, depth: float, index: int, count: int) -> list[int]:
    """Rows of T_world_camera (N, 4, 4) that see at least half of what `index` sees, if that is `depth` away.

    Ranked by how much they see and taken evenly along the ranking: near ones match surely, far ones hold the path
    together. The next row is always among them if it is fit, so that no chain is broken.
    """
    side = (np.arange(OVERLAP_POINTS) + 0.5) / OVERLAP_POINTS
    uv = np.stack(np.meshgrid(side * camera.width, side * camera.height), -1).reshape(-1, 2)
    rays = np.concatenate([normalised(uv, camera), np.ones((len(uv), 1))], 1)
    world = transform(T_world_camera[index], rays * depth)
    seen = np.einsum(
        "nij,pj->npi", inverse(T_world_camera)[:, :3], np.concatenate([world, np.ones((len(world), 1))], 1)
    )
    at = project(seen, camera)  # (N, p, 2)
    with np.errstate(invalid="ignore"):
        inside = ((at > 0) & (at < (camera.width, camera.height))).all(2).mean(1)
    shift = np.nan_to_num(np.linalg.norm(at - uv, axis=2), nan=np.inf).mean(1)
    facing = T_world_camera[:, :3, 2] @ T_world_camera[index, :3, 2]
    fit = np.flatnonzero((inside >= LEAST_OVERLAP) & (facing > np.cos(np.radians(MOST_TURN_DEG))))
    fit = fit[fit != index]
    fit = fit[np.argsort(shift[fit], kind="stable")]
    if len(fit) > count:
        spread = fit[np.linspace(0, len(fit) - 1, count).round().astype(int)]
        following = fit[fit == index + 1]
        fit = np.unique(np.concatenate([following, spread]))
    return fit.tolist()  # type: ignore[no-any-return]
