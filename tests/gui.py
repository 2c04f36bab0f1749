"""When tests may open windows, and a small finished run for them to show."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from marigold3d.camera import depth_to_points
from marigold3d.doctor import check_display, check_plugin, check_qt
from marigold3d.export.depth_maps import DepthEncoding, write_depth_png, write_encoding, write_sigma_png
from marigold3d.export.ply import write_ply
from marigold3d.export.trajectories import write_tum
from marigold3d.progress import FramePreview, Progress
from marigold3d.store import Run
from marigold3d.types import DepthMap, Intrinsics, PointCloud, Trajectory
from marigold3d.video import write_video

ARTEFACTS = Path(__file__).parent / "artefacts"
CLIP = Path(__file__).parents[1] / "examples" / "clip.mp4"
WIDTH, HEIGHT, FRAMES = 64, 48, 6
CAMERA = Intrinsics.from_fov(60, WIDTH, HEIGHT)


@functools.cache
def window_problem() -> str:
    """Why no window can be opened here, with the remedy; empty when it can."""
    failed = [check for check in (check_display(), check_qt(), check_plugin()) if not check.ok]
    return "; ".join(f"{check.name}: {check.detail} ({check.remedy})" for check in failed)


def require_window() -> None:
    """Skip the test where no window can be opened; under CI fail, lest a broken set-up look like success."""
    if problem := window_problem():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem)


def make_clip(path: Path, frames: int = FRAMES) -> Path:
    """A clip whose frames differ: a bright column wanders over a gradient."""
    write_video(path, [_frame(i) for i in range(frames)], fps=10)
    return path


def make_run(folder: Path, clip: Path | str = "") -> Run:
    """A finished run: a camera that slides along a wall with a box before it, every second frame used."""
    run = Run.create(folder, str(clip), {}, overwrite=False)
    indices = list(range(0, FRAMES, 2))
    T = np.tile(np.eye(4), (len(indices), 1, 1))
    T[:, 0, 3] = np.linspace(-0.2, 0.2, len(indices))
    encoding, of_sigma = DepthEncoding.for_range(0.5, 5, "m"), DepthEncoding.for_sigma(2.0, "m")
    write_encoding(folder / "depth" / "encoding.json", encoding)
    write_encoding(folder / "sigma" / "encoding.json", of_sigma, "sigma")
    for i in indices:
        write_depth_png(folder / "depth" / f"{i:06d}.png", depth_map(), encoding)
        write_sigma_png(folder / "sigma" / f"{i:06d}.png", depth_map(), of_sigma)
    (folder / "camera.json").write_text(json.dumps(CAMERA.as_dict()))
    write_tum(folder / "trajectory.txt", Trajectory(np.array(indices) / 10, T), "m")
    write_ply(folder / "cloud.ply", make_cloud(T[1]))
    run.update(status="finished", units="m", views=[2])  # the cloud is of one view
    return run


def depth_map() -> DepthMap:
    """A wall at 2 m with a box at 1 m in the middle, known to 1 %; the first row unknown."""
    depth = np.full((HEIGHT, WIDTH), 2, np.float32)
    depth[16:32, 24:40] = 1
    valid = np.ones(depth.shape, np.bool_)
    valid[0] = False
    return DepthMap(depth, valid, np.float32(0.01) * depth)


def make_cloud(T_world_camera: np.ndarray) -> PointCloud:
    """Every pixel of one pose: the box red, the wall green above and blue below, normals towards the cameras."""
    depth = depth_map()
    points = depth_to_points(depth.depth, CAMERA, T_world_camera)[depth.valid]
    n = len(points)
    colors = np.where(points[:, 1:2] < 0, np.uint8([[40, 200, 40]]), np.uint8([[40, 40, 220]]))
    colors[points[:, 2] < 1.5] = (230, 30, 30)
    normals = np.tile(np.float32([0, 0, -1]), (n, 1))
    sigma, ones = np.full(n, 0.01, np.float32), np.ones(n, np.int32)
    return PointCloud(points, colors.astype(np.uint8), normals, sigma, ones, 0 * ones, "m")


def fake_steps(clip: Path, folder: Path, config: object, *, overwrite: bool = False) -> Iterator[Progress]:
    """The pipeline's events without its work."""
    yield Progress("scan", 1, 1)
    for stage in ("depth", "align"):
        for i in range(3):
            yield Progress(stage, i + 1, 3, FramePreview(i, depth_map().depth + i))
    return make_run(folder, clip)


def _frame(i: int) -> np.ndarray:
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[..., 1] = np.linspace(0, 255, HEIGHT, dtype=np.uint8)[:, None]
    column = 4 + 7 * i % (WIDTH - 8)
    rgb[:, column : column + 4] = 255
    return rgb
