"""How far a finished run is from the truth: depth, camera path and cloud. Shared by the tests and the benchmarks.

A run has a scale of its own, so that is fitted first and once: one factor for all its depth, and one similarity for its
path. The cloud takes the scale of the depth, since the camera centres of a short path fix a scale badly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from marigold3d.camera import unproject
from marigold3d.poses.camera_files import read_camera
from marigold3d.poses.files import read_tum
from marigold3d.rigid import transform, umeyama
from marigold3d.store import Run
from marigold3d.types import Array, FloatImage, Intrinsics, Trajectory

NEAR_M, FAR_M = 0.3, 6.0  # depth that is scored
CLOUD_FAR_M = 4.0  # a sensor's depth beyond this is too noisy to judge a cloud by
FRAME_POINTS = 20_000  # truth points taken from one depth map
MAX_POINTS = 300_000  # of a run's cloud that are scored
SEARCH_M = 0.5  # distances are not followed beyond this
ICP_ROUNDS, ICP_KEEP, ICP_POINTS = 30, 0.7, 30_000


@dataclass(frozen=True, eq=False)
class Truth:
    """What a clip shows: `depth_m` by source frame, (H, W) float32 z in metres, 0 unmeasured; `path` of all frames.

    `exact` depth is rendered, not measured, so distances to its surfaces mean something below a sensor's noise.
    """

    camera: Intrinsics
    path: Trajectory
    depth_m: dict[int, FloatImage]
    exact: bool = False

    @classmethod
    def recording(cls, folder: Path, fps: float) -> Truth:
        """A recorded clip: depth/NNNNNN.png in millimetres, poses_c2w.npy (N, 4, 4), K.txt."""
        depth_m = read_millimetres(folder / "depth")
        T_world_camera = np.load(folder / "poses_c2w.npy").astype(float)
        height, width = next(iter(depth_m.values())).shape
        path = Trajectory(np.arange(len(T_world_camera)) / fps, T_world_camera)
        return cls(read_camera(folder / "K.txt", width, height), path, depth_m)

    @classmethod
    def rendered(cls, folder: Path) -> Truth:
        """The truth beside examples/clip.mp4: depth/NNNNNN.png in millimetres, trajectory.txt, camera.json."""
        depth_m = read_millimetres(folder / "depth")
        height, width = next(iter(depth_m.values())).shape
        camera = read_camera(folder / "camera.json", width, height)
        return cls(camera, read_tum(folder / "trajectory.txt"), depth_m, exact=True)

    def at(self, timestamps_s: Array) -> Array:
        """T_world_camera (N, 4, 4) of the frames nearest in time to `timestamps_s` (N,)."""
        return self.path.T_world_camera[np.abs(self.path.timestamps_s - timestamps_s[:, None]).argmin(1)]

    def points(self, frames: Iterable[int], count: int | None = FRAME_POINTS) -> Array:
        """(M, 3) world points, metres: a random `count` of each of the depth maps; None: all."""
        rng = np.random.default_rng(0)
        return np.concatenate([self._frame_points(index, count, rng) for index in frames])

    def _frame_points(self, index: int, count: int | None, rng: np.random.Generator) -> Array:
        depth_m, far_m = self.depth_m[index], FAR_M if self.exact else CLOUD_FAR_M
        rows, columns = np.nonzero((depth_m > NEAR_M) & (depth_m < far_m))
        some = rng.permutation(len(rows))[:count]
        rows, columns = rows[some], columns[some]
        uv = np.stack([columns, rows], 1) + 0.5  # (K, 2)
        points_camera = unproject(uv, depth_m[rows, columns].astype(float), self.camera)
        return transform(self.path.T_world_camera[index], points_camera)


def read_millimetres(folder: Path) -> dict[int, FloatImage]:
    """Depth in metres, by the number in the file name."""
    files = sorted(folder.glob("*.png"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no depth maps")
    return {int(f.stem): (np.asarray(Image.open(f)) / 1000).astype(np.float32) for f in files}


@dataclass(frozen=True)
class DepthScore:
    """`scale` brings the run's depth to metres. abs_rel, delta1, coverage: means over the scored frames' own means."""

    scale: float
    scored_frames: int
    abs_rel: float
    delta1: float
    coverage: float


@dataclass(frozen=True)
class CloudScore:
    """Shares of cloud near the truth (accuracy) and of truth near the cloud (completeness), and their harmonic mean."""

    f_5cm: float
    accuracy_5cm: float
    completeness_5cm: float
    f_10cm: float
    accuracy_10cm: float
    completeness_10cm: float


@dataclass(frozen=True)
class SurfaceScore:
    """Distance of the cloud's points to the nearest true surface, metres: mean, median, and what 90 % stay below."""

    surface_mean_m: float
    surface_median_m: float
    surface_p90_m: float


def score_run(run: Run, truth: Truth) -> dict[str, float]:
    """Every figure of a run: depth, `ate_rmse_m` of the camera centres, `posed_frames`; the cloud's if it has one."""
    path = run.trajectory()
    depth = score_depth(run, truth)
    figures = {"posed_frames": len(path), **asdict(depth), "ate_rmse_m": ate_rmse(path, truth)}
    if (run.path / "cloud.ply").is_file():
        frames = common_frames(run, truth)
        truth_points = truth.points(frames)
        points = align_cloud(run.cloud().points.astype(float), path, truth, depth.scale, truth_points)
        figures |= asdict(score_cloud(points, truth_points))
        if truth.exact:
            figures |= asdict(score_surface(points, truth.points(frames, None)))
    return figures


def common_frames(run: Run, truth: Truth) -> list[int]:
    """Source frames that have depth in both: a run of part of a clip is judged by that part."""
    return sorted(truth.depth_m.keys() & set(run.frame_indices))


def score_depth(run: Run, truth: Truth) -> DepthScore:
    """Depth of the common frames, brought to metres by the median over frames of their median ratios."""
    pairs, coverage = [], []
    for index in common_frames(run, truth):
        true_m, mine = truth.depth_m[index], run.depth(index)
        measured = (true_m > NEAR_M) & (true_m < FAR_M)
        both = measured & nearest(mine.valid, true_m.shape)
        coverage.append(both.sum() / max(measured.sum(), 1))
        if both.any():
            pairs.append((nearest(mine.depth, true_m.shape)[both].astype(float), true_m[both].astype(float)))
    if not pairs:
        raise ValueError(f"{run.path}: no frame has both true and estimated depth")
    scale = float(np.median([np.median(z / d) for d, z in pairs]))
    abs_rel = np.mean([np.mean(np.abs(scale * d - z) / z) for d, z in pairs])
    delta1 = np.mean([np.mean(np.maximum(scale * d / z, z / (scale * d)) < 1.25) for d, z in pairs])
    return DepthScore(scale, len(coverage), float(abs_rel), float(delta1), float(np.mean(coverage)))


def nearest(image: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    """`image` (H, W) at another size: the pixel under each new centre, never a blend of two depths."""
    rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in zip(shape, image.shape, strict=True))
    return image[rows.astype(int)[:, None], columns.astype(int)]


def ate_rmse(path: Trajectory, truth: Truth) -> float:
    """Root mean square distance of the camera centres after the best similarity, metres."""
    true_centres = truth.at(path.timestamps_s)[:, :3, 3]
    off = umeyama(path.centres, true_centres).apply(path.centres) - true_centres
    return float(np.sqrt((off**2).sum(1).mean()))


def align_cloud(points: Array, path: Trajectory, truth: Truth, scale: float, truth_points: Array) -> Array:
    """The run's points (N, 3) in the truth's world: `scale`, mean rotation and shift between the poses, then ICP."""
    T_true = truth.at(path.timestamps_s)
    U, _, Vt = np.linalg.svd(np.einsum("nij,nkj->ik", T_true[:, :3, :3], path.T_world_camera[:, :3, :3]))
    R = U @ np.diag([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))]) @ Vt  # nearest rotation to the sum, so their mean
    shift = (T_true[:, :3, 3] - scale * path.centres @ R.T).mean(0)
    if len(points) > MAX_POINTS:
        points = np.random.default_rng(0).choice(points, MAX_POINTS, replace=False)
    return trimmed_icp(scale * points @ R.T + shift, truth_points)


def trimmed_icp(points: Array, target: Array) -> Array:
    """`points` (N, 3) moved rigidly onto `target` (M, 3); in each round the worst-matching pairs are left out."""
    tree = cKDTree(target)
    step = max(1, len(points) // ICP_POINTS)
    for _ in range(ICP_ROUNDS):
        some = points[::step]
        distance, match = tree.query(some)
        good = distance <= np.quantile(distance, ICP_KEEP)
        points = umeyama(some[good], target[match[good]], with_scale=False).apply(points)
    return points


def score_cloud(points: Array, truth_points: Array) -> CloudScore:
    """`points` (N, 3), aligned, against `truth_points` (M, 3), metres; neither is searched beyond SEARCH_M."""
    to_truth = cKDTree(truth_points).query(points, distance_upper_bound=SEARCH_M)[0]
    to_cloud = cKDTree(points).query(truth_points, distance_upper_bound=SEARCH_M)[0]
    near: list[float] = []
    for threshold_m in (0.05, 0.10):
        accuracy, completeness = float((to_truth < threshold_m).mean()), float((to_cloud < threshold_m).mean())
        near += [2 * accuracy * completeness / max(accuracy + completeness, 1e-9), accuracy, completeness]
    return CloudScore(*near)


def score_surface(points: Array, truth_points: Array) -> SurfaceScore:
    """`points` (N, 3), aligned, against dense `truth_points` (M, 3), metres; at most SEARCH_M is counted.

    With every pixel of the example's truth the points lie 3 to 8 mm apart: no distance is known better than that.
    """
    distance = np.minimum(cKDTree(truth_points).query(points, distance_upper_bound=SEARCH_M)[0], SEARCH_M)
    return SurfaceScore(float(distance.mean()), float(np.median(distance)), float(np.quantile(distance, 0.9)))
