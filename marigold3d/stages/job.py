"""What the stages of a run share, and the hashes that say whether an earlier result is still good."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import RunConfig
from ..poses.sparse import SparseModel
from ..scan import Scan
from ..store import FrameArray, Run
from ..types import Array, DepthMap, Intrinsics, Units
from ..video import VideoSource


@dataclass(eq=False)
class Job:
    """What the stages of one run share. `warnings` are lines for the user, `report` what run.json will say."""

    video: VideoSource
    run: Run
    config: RunConfig
    report: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def warn(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)


@dataclass(frozen=True, eq=False)
class Cameras:
    """Intrinsics at the depth maps' size, poses of all T used frames where `posed` (T,), and the points behind them."""

    intrinsics: Intrinsics
    posed: NDArray[np.bool_]
    T_world_camera: Array
    model: SparseModel | None
    keyframes: NDArray[np.int64]  # positions with a pose of their own, not an interpolated one
    units: Units
    is_moving: bool = True  # False: one pose stands for all frames

    def in_metres(self, factor: float) -> Cameras:
        """The same cameras and points in metres, `factor` of which make a unit of what they were in."""
        T = self.T_world_camera.copy()
        T[:, :3, 3] *= factor
        model = None if self.model is None else self.model.scaled(factor)
        return replace(self, T_world_camera=T, model=model, units="m")


@dataclass(frozen=True, eq=False)
class DepthStore:
    """Scene-unit depth with sigma on disk, by position; NaN is invalid."""

    depth: FrameArray
    sigma: FrameArray
    factor: float = 1.0  # what is on disk is multiplied by this: a known length rescales a scene without rewriting it

    @classmethod
    def open(
        cls, run: Run, name: str, scan: Scan, size: tuple[int, int] | None = None, *, fresh: bool = True
    ) -> DepthStore:
        w, h = size or scan.image_size
        shape = (len(scan), h, w)
        return cls(run.frames_array(name, shape, fresh=fresh), run.frames_array(f"{name}_sigma", shape, fresh=fresh))

    def put(self, position: int, depth: DepthMap) -> None:
        self.sigma[position] = depth.sigma_or_typical.astype(np.float32)
        self.depth[position] = np.where(depth.valid, depth.depth, np.nan).astype(np.float32)

    def get(self, position: int) -> DepthMap:
        factor = np.float32(self.factor)
        z = self.depth[position] * factor
        valid = np.isfinite(z)
        return DepthMap(np.where(valid, z, 0).astype(np.float32), valid, self.sigma[position] * factor)

    def scaled(self, factor: float) -> DepthStore:
        """The same surfaces in units `factor` times finer."""
        return replace(self, factor=self.factor * factor)


def digest(*parts: Any) -> str:
    """Short hash of settings and results that a stage depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(path: Path) -> str:
    """Hash that changes when a clip or folder of images does: names, sizes, and a file's first and last megabyte."""
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        return digest([(f.name, f.stat().st_size) for f in sorted(folder.iterdir()) if f.is_file()])
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(2**20)
        file.seek(max(0, size - 2**20))
        return digest(size, hashlib.sha256(head + file.read()).hexdigest())
