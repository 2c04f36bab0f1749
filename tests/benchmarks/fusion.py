"""Fusion of given depth, beside Open3D's VoxelBlockGrid: how near cloud and mesh come to the true surfaces, how fast.

    python tests/benchmarks/fusion.py [redwood kitchen hololens] [--data FOLDER] [--voxel 0.01]

Every second frame is fused, the others are the truth: points of their depth maps, exact ones of `redwood_livingroom1`,
a sensor's of the other two. Accuracy: distance from the result to the truth where the truth was seen; completeness:
from the truth to the result; F-score at 1 cm, or 5 (Tanks and Temples, Knapitsch et al. 2017). Seconds are processor
seconds, integration and extraction apart; the filters, which Open3D's pipeline has none of, are a column of their own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # a script sees its own folder only

from marigold3d.camera import depth_to_points  # noqa: E402
from marigold3d.config import FusionConfig  # noqa: E402
from marigold3d.fusion import FusionInput, fuse  # noqa: E402
from marigold3d.fusion.blocks import BlockStore  # noqa: E402
from marigold3d.fusion.fuse import Limits, filtered, oriented  # noqa: E402
from marigold3d.fusion.surface import extract_surface, without_small_parts  # noqa: E402
from marigold3d.fusion.tsdf import TRUNCATION, TsdfVolume  # noqa: E402
from marigold3d.progress import run as drive  # noqa: E402
from marigold3d.types import Array, DepthMap, Intrinsics  # noqa: E402
from marigold3d.video import open_video  # noqa: E402

FAR_M = 6.0
SAMPLES = 400_000  # points of truth and of each result that are compared
SEEN_M = 0.1  # of a result's points those farther than this from all truth are where the truth's frames did not look
Row = tuple[str, int, NDArray[np.floating], float, float, float]
"""name, points or triangles, points (N, 3), CPU ms a frame of integration and of filters, CPU s of extraction"""


@dataclass(frozen=True, eq=False)
class Scene:
    """Frames of a recording: depth in metres (H, W), colours, poses."""

    camera: Intrinsics
    depth_m: list[NDArray[np.float32]]
    rgb: list[NDArray[np.uint8]]
    T_world_camera: Array
    tau_m: float

    def every_second(self, first: int) -> Scene:
        return replace(
            self,
            depth_m=self.depth_m[first::2],
            rgb=self.rgb[first::2],
            T_world_camera=self.T_world_camera[first::2],
        )

    def maps(self) -> list[DepthMap]:
        return [DepthMap(z, (z > 0) & (z < FAR_M), 0.005 * z) for z in self.depth_m]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", default=["redwood", "kitchen"])
    parser.add_argument("--data", type=Path, default=os.environ.get("MARIGOLD3D_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--voxel", type=float, default=0.01, help="m")
    args = parser.parse_args()
    for name in args.scenes:
        folder = Path(args.data) / {"redwood": "redwood_livingroom1"}.get(name, name)
        if not folder.is_dir():
            sys.exit(f"{folder}: no such recording; pass --data or set MARIGOLD3D_DATA")
        scene = redwood(folder) if name == "redwood" else recorded(folder)
        compare(name, scene.every_second(0), scene.every_second(1), args.voxel)


def compare(name: str, used: Scene, others: Scene, voxel: float) -> None:
    truth = points_of(others)
    print(f"\n{name}: {len(used.rgb)} frames fused, voxel {voxel:g} m; truth: {len(truth)} points of the others\n")
    print(
        "| result | points or triangles | accuracy, mm: mean / median / 90 % | completeness, mm | precision, recall, "
        f"F at {100 * used.tau_m:g} cm | integrate, CPU ms a frame | filters | extract, CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for way in (ours_mesh, ours_mesh_unfiltered, open3d_mesh, ours_cloud, ours_cloud_unfiltered, open3d_cloud):
        title, count, points, integrate_ms, filters_ms, extract_s = way(used, voxel)
        print(
            f"| {title} | {count:,} | {scores(points, truth, used.tau_m)} | {integrate_ms:.0f} | {filters_ms:.0f} "
            f"| {extract_s:.2f} |",
            flush=True,
        )


def redwood(folder: Path) -> Scene:
    lines = (folder / "test_scene" / "trajectory.log").read_text().splitlines()
    poses = {
        int(lines[k].split()[0]): np.array([r.split() for r in lines[k + 1 : k + 5]], float)
        for k in range(0, len(lines), 5)
    }
    files = sorted((folder / "depth").glob("*.png"))
    numbers = [int(f.stem) for f in files]
    rgb = [np.asarray(Image.open(next((folder / "image").glob(f"{n:05d}.*"))).convert("RGB")) for n in numbers]
    T = np.stack([poses[n] for n in numbers])
    return Scene(Intrinsics(525, 525, 320, 240, 640, 480), [millimetres(f) for f in files], rgb, T, 0.01)


def recorded(folder: Path) -> Scene:
    """Frames with depth of a clip with poses_c2w.npy and K.txt."""
    files = {int(f.stem): f for f in sorted((folder / "depth").glob("*.png"))}
    poses, rgb = np.load(folder / "poses_c2w.npy").astype(float), []
    for position, frame in open_video(folder / "clip.mp4").frames_at(files):
        assert position in files
        rgb.append(frame)
    K, (height, width) = np.loadtxt(folder / "K.txt"), rgb[0].shape[:2]
    camera = Intrinsics(K[0, 0], K[1, 1], K[0, 2], K[1, 2], width, height)
    return Scene(camera, [millimetres(f) for f in files.values()], rgb, poses[list(files)], 0.05)


def millimetres(file: Path) -> NDArray[np.float32]:
    return np.asarray(Image.open(file)).astype(np.float32) / 1000


def points_of(scene: Scene) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    each = [
        depth_to_points(m.depth, scene.camera, T)[m.valid]
        for m, T in zip(scene.maps(), scene.T_world_camera, strict=True)
    ]
    every = np.concatenate(each)
    return every[rng.choice(len(every), min(SAMPLES, len(every)), replace=False)]


def scores(points: NDArray[np.floating], truth: NDArray[np.float32], tau_m: float) -> str:
    """Distances both ways. Of the result only what the truth's frames saw counts: it is within SEEN_M of some point."""
    rng = np.random.default_rng(1)
    some = points[rng.choice(len(points), min(SAMPLES, len(points)), replace=False)]
    to_truth, _ = cKDTree(truth).query(some, workers=-1)
    to_result, _ = cKDTree(some).query(truth, workers=-1)
    to_truth = to_truth[to_truth < SEEN_M]
    precision, recall = (to_truth < tau_m).mean(), (to_result < tau_m).mean()
    f_score = 2 * precision * recall / (precision + recall)
    ahead, back = (
        " / ".join(f"{1000 * v:.1f}" for v in (d.mean(), np.median(d), np.quantile(d, 0.9)))
        for d in (to_truth, to_result)
    )
    return f"{ahead} | {back} | {precision:.3f}, {recall:.3f}, {f_score:.3f}"


# -- ours -------------------------------------------------------------------------------------------------------------


def views_of(scene: Scene) -> FusionInput:
    rows = np.arange(len(scene.rgb))
    return FusionInput(rows, rows, scene.T_world_camera, scene.maps().__getitem__, scene.camera, "m")


def ours_mesh(scene: Scene, voxel: float, *, filters: bool = True) -> Row:
    views, config = views_of(scene), FusionConfig(voxel=voxel, max_depth=FAR_M)
    limits, spent = Limits.of(views, config), [0.0, 0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder:
        volume = TsdfVolume(voxel, BlockStore(Path(folder)), limits.typical_sigma)
        for row, (depth, rgb, T) in enumerate(zip(scene.maps(), scene.rgb, scene.T_world_camera, strict=True)):
            if filters:
                with clocked(spent, 1):
                    *_, checked = filtered(views, row, limits, config)
                    *_, depth = oriented(checked, scene.camera, T)
            with clocked(spent, 0):
                volume.integrate(depth, rgb, scene.camera, T)
        with clocked(spent, 2):
            mesh = without_small_parts(drive(extract_surface(volume.store, voxel, 1.0, "m")), 800)
    n = len(scene.rgb)
    name = "mesh" if filters else "mesh without filters"
    points = sampled(mesh.vertices, mesh.faces)
    return f"ours, {name}", len(mesh), points, 1e3 * spent[0] / n, 1e3 * spent[1] / n, spent[2]


def ours_mesh_unfiltered(scene: Scene, voxel: float) -> Row:
    return ours_mesh(scene, voxel, filters=False)


def ours_cloud(scene: Scene, voxel: float, *, filters: bool = True) -> Row:
    began = time.process_time()
    config = FusionConfig(voxel=voxel, max_depth=FAR_M)
    if not filters:
        config = replace(config, consistency_ratio=0.9, min_observations=1)
    cloud, _ = drive(fuse(views_of(scene), iter(enumerate(scene.rgb)), config))
    each_ms = 1e3 * (time.process_time() - began) / len(scene.rgb)
    name = "cloud" if filters else "cloud without consistency"
    return f"ours, {name} (all together)", len(cloud), cloud.points, each_ms, 0.0, 0.0


def ours_cloud_unfiltered(scene: Scene, voxel: float) -> Row:
    return ours_cloud(scene, voxel, filters=False)


# -- Open3D -----------------------------------------------------------------------------------------------------------


def open3d_grid(scene: Scene, voxel: float) -> tuple[Any, float]:
    """Open3D's own pipeline, with the truncation that ours has; (grid, CPU ms a frame)."""
    import open3d as o3d

    core = o3d.core
    names, types = ("tsdf", "weight", "color"), (core.float32,) * 3
    grid = o3d.t.geometry.VoxelBlockGrid(names, types, (1, 1, 3), voxel, 16, 20_000, core.Device("CPU:0"))
    K = core.Tensor(scene.camera.K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # its pixel centres are whole numbers
    spent = [0.0]
    for depth, rgb, T in zip(scene.depth_m, scene.rgb, scene.T_world_camera, strict=True):
        z, color = o3d.t.geometry.Image(depth), o3d.t.geometry.Image(rgb.astype(np.float32) / 255)
        extrinsic = core.Tensor(np.linalg.inv(T))
        with clocked(spent, 0):
            near = grid.compute_unique_block_coordinates(z, K, extrinsic, 1.0, FAR_M, TRUNCATION)
            grid.integrate(near, z, color, K, K, extrinsic, 1.0, FAR_M, TRUNCATION)
    return grid, 1e3 * spent[0] / len(scene.rgb)


def open3d_mesh(scene: Scene, voxel: float) -> Row:
    grid, each_ms = open3d_grid(scene, voxel)
    spent = [0.0]
    with clocked(spent, 0):
        mesh = grid.extract_triangle_mesh(1.0)
    faces = mesh.triangle.indices.numpy()
    return "Open3D, mesh", len(faces), sampled(mesh.vertex.positions.numpy(), faces), each_ms, 0.0, spent[0]


def open3d_cloud(scene: Scene, voxel: float) -> Row:
    grid, each_ms = open3d_grid(scene, voxel)
    spent = [0.0]
    with clocked(spent, 0):
        points = grid.extract_point_cloud(1.0).point.positions.numpy()
    return "Open3D, cloud", len(points), points, each_ms, 0.0, spent[0]


# -- what both need ---------------------------------------------------------------------------------------------------


def sampled(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> Array:
    """SAMPLES points evenly over the triangles' area."""
    rng, corners = np.random.default_rng(2), vertices[faces].astype(float)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    picked = corners[rng.choice(len(faces), SAMPLES, p=area / area.sum())]
    a, b = rng.uniform(size=(2, SAMPLES, 1))
    a, b = np.where(a + b > 1, 1 - a, a), np.where(a + b > 1, 1 - b, b)
    return np.asarray(picked[:, 0] + a * (picked[:, 1] - picked[:, 0]) + b * (picked[:, 2] - picked[:, 0]))


class clocked:
    """Adds the processor seconds of a block to an entry of a list."""

    def __init__(self, spent: list[float], entry: int) -> None:
        self._spent, self._entry = spent, entry

    def __enter__(self) -> None:
        self._began = time.process_time()

    def __exit__(self, *_: object) -> None:
        self._spent[self._entry] += time.process_time() - self._began


if __name__ == "__main__":
    main()
