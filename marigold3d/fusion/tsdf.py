"""Depth maps merged into a truncated signed distance field (Curless and Levoy, SIGGRAPH 1996), weighted by sigma.

A voxel holds the weighted mean of its distance along z to the surface, cut off at a few voxels, positive before it. The
weight of an observation is 1 / sigma^2, relative to what is typical in the clip.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..camera import depth_to_points, distort
from ..types import Array, DepthMap, FloatImage, Intrinsics
from .blocks import COLUMNS, SIDE, VOXELS, BlockStore, Coords, Keys, coords_of, keys_of

TRUNCATION = 6.0  # voxels
WEIGHTS = (1 / 16, 16.0)  # an observation counts so little and so much, at the most
SEEDS_PX = (4, 2, 1)  # every such pixel opens blocks along its ray: the widest that leaves two to a block's width
NEAREST = 1e-3  # voxels before the camera under which nothing is seen
THREADS = min(8, os.cpu_count() or 1)
BATCH = 128  # blocks at a time, so that what is computed stays in the processor's cache

# A block's voxels in the order of Open3D's VoxelBlockGrid: z slowest, x fastest.
OFFSETS = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), -1).reshape(VOXELS, 3)[:, ::-1]


class TsdfVolume:
    """A field of voxels of edge `voxel` (scene units) in `store`; voxel (i, j, k) lies at voxel * (i, j, k).

    sigma_share: standard deviation of depth, as a share of it, of an observation with weight 1.
    """

    def __init__(self, voxel: float, store: BlockStore, sigma_share: float) -> None:
        self.voxel, self.store = voxel, store
        self.truncation = TRUNCATION * voxel
        self._sigma_share = sigma_share

    def integrate(self, depth: DepthMap, rgb: NDArray[np.uint8], camera: Intrinsics, T_world_camera: Array) -> None:
        """Add a view: z-depth (H, W) with sigma, colours (H, W, 3), and its pose (4, 4)."""
        if not depth.valid.any():
            return
        z = np.where(depth.valid, depth.depth, 0).astype(np.float32)
        rows = self.store.rows(keys := self._near(z, camera, T_world_camera))
        coords = coords_of(keys)
        seen = np.concatenate([self._weights(depth)[..., None], rgb.astype(np.float32)], 2).reshape(-1, COLUMNS - 1)

        def update(part: slice) -> None:
            values = self.store.read(rows[part])
            self._update(values, coords[part], z.ravel(), seen, camera, T_world_camera)
            self.store.write(rows[part], values)

        with ThreadPoolExecutor(THREADS) as pool:  # numpy works outside the interpreter's lock; no block is in two
            for _ in pool.map(update, _batches(len(keys))):
                pass

    def _weights(self, depth: DepthMap) -> FloatImage:
        if depth.sigma is None:
            return np.ones(depth.depth.shape, np.float32)
        share = depth.sigma / np.maximum(depth.depth, 1e-12)
        return np.clip((self._sigma_share / np.maximum(share, 1e-12)) ** 2, *WEIGHTS).astype(np.float32)

    def _near(self, z: FloatImage, camera: Intrinsics, T_world_camera: Array) -> Keys:
        """Blocks within the truncation of the surface, increasing."""
        seeds, covered = np.zeros((2, *z.shape), bool)
        footprint = z / np.float32(min(camera.fx, camera.fy))  # of a pixel, scene units
        for every in SEEDS_PX:
            grid = np.s_[every // 2 :: every, every // 2 :: every]
            close = every * footprint[grid] <= SIDE / 2 * self.voxel if every > 1 else True
            seeds[grid] |= (z[grid] > 0) & close & ~covered[grid]
            covered |= every * footprint <= SIDE / 2 * self.voxel
        centre = T_world_camera[:3, 3].astype(np.float32)
        points = depth_to_points(z, camera, T_world_camera)[seeds]  # (N, 3)
        rays = (points - centre) / z[seeds][:, None]  # of z 1
        steps = np.arange(-self.truncation, self.truncation + self.voxel, SIDE / 2 * self.voxel)
        cells = [np.floor((points + s * rays) / (SIDE * self.voxel)).astype(np.int64) for s in steps]
        return np.unique(np.concatenate([np.unique(keys_of(c)) for c in cells]))

    def _update(
        self,
        values: NDArray[np.float32],
        coords: Coords,
        z: NDArray[np.float32],
        seen: NDArray[np.float32],
        camera: Intrinsics,
        T_world_camera: Array,
    ) -> None:
        """Add to blocks (B, COLUMNS, VOXELS) at `coords` (B, 3), in place, what a view's pixels say: their z-depth
        (H * W,), 0 unknown, and weight and colour (H * W, 4).

        All voxels are computed, seen or not: that takes less time than picking them out.
        """
        R, f32 = T_world_camera[:3, :3], np.float32
        corner = ((coords * (SIDE * self.voxel) - T_world_camera[:3, 3]) @ R).astype(f32)  # (B, 3) in the camera
        inner = (OFFSETS * self.voxel @ R).astype(f32)  # (VOXELS, 3)
        x, y, voxel_z = (corner[:, i, None] + inner[None, :, i] for i in range(3))  # (B, VOXELS)
        inverse_z = 1 / np.maximum(voxel_z, f32(NEAREST * self.voxel))
        x *= inverse_z
        y *= inverse_z
        if camera.distortion is not None:
            x, y = np.moveaxis(distort(np.stack([x, y], -1), camera).astype(f32), -1, 0)
        u, v = x * f32(camera.fx) + f32(camera.cx), y * f32(camera.fy) + f32(camera.cy)
        column = np.clip(u, 0, camera.width - 1).astype(np.int32)
        row = np.clip(v, 0, camera.height - 1).astype(np.int32)
        row *= camera.width
        row += column
        measured = z.take(row)
        distance = measured - voxel_z
        known = (measured > 0) & (distance > -self.truncation) & (voxel_z > NEAREST * self.voxel)
        known &= (u >= 0) & (u < camera.width)
        known &= (v >= 0) & (v < camera.height)
        np.minimum(distance, f32(self.truncation), out=distance)
        said = seen.take(row, 0)  # (B, VOXELS, 4)
        weight = said[..., 0] * known
        values[:, 1] += weight
        share = weight / np.maximum(values[:, 1], f32(1e-9))
        values[:, 0] += share * (distance - values[:, 0])
        for i in range(1, COLUMNS - 1):
            values[:, 1 + i] += share * (said[..., i] - values[:, 1 + i])


def _batches(n: int) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, n, BATCH))
