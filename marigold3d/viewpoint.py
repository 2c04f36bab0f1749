"""Where to stand so that a picture of a cloud is recognisable."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from .types import Array, Intrinsics, Trajectory

OVERVIEW_FOV_DEG = 50.0
FITTED_SHARE = 0.985  # of the cloud lies inside the picture; strays may be cut off
BACK, UP, RIGHT = 1.0, 0.45, 0.3  # the direction from the scene to the overview, along the mean camera's axes
MARGIN = 1.04  # of the picture around that share
FRAMING_ROUNDS = 4  # each centres the picture, then steps back as far as needed
MAX_SAMPLES = 20_000  # points that decide the framing

SIDES, LEAST_SEEN = 8, 0.4  # a turntable turns fully where each side shows so much of what the overview does
SWING_DEG = 40.0  # else it swings so far to both sides

MAX_FRUSTUMS = 12  # cameras drawn along a path
FRUSTUM_SIZE = 0.04  # of the scene's extent
FRUSTUM_EDGES = np.array([(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1)])  # apex 0, corners 1 to 4


def overview(points: NDArray[np.floating], trajectory: Trajectory, width: int, height: int) -> tuple[Intrinsics, Array]:
    """Camera and pose that show the whole cloud from behind and above the camera path."""
    camera = Intrinsics.from_fov(OVERVIEW_FOV_DEG, width, height)
    sample = _to_be_seen(points, trajectory)
    forward, up = _mean_axes(trajectory)
    backward = -BACK * forward + UP * up + RIGHT * np.cross(forward, up)
    T = look_from(backward, up)
    centre = np.median(sample, 0)
    for _ in range(FRAMING_ROUNDS):
        in_view = (sample - centre) @ T[:3, :3]  # (M, 3)
        distance = _distance(in_view, camera)
        centre = centre + T[:3, :2] @ _off_centre(in_view, distance)
    T[:3, 3] = centre - distance * T[:3, 2]
    return camera, T


def turntable(
    points: NDArray[np.floating], normals: NDArray[np.floating], trajectory: Trajectory, width: int, height: int, n: int
) -> tuple[Intrinsics, Array]:
    """Camera and poses (n, 4, 4) of one smooth turn that begins and ends with the overview.

    All the way round a scene that shows surfaces from everywhere, else to and fro before the side that was filmed.
    """
    camera, T = overview(points, trajectory, width, height)
    _, up = _mean_axes(trajectory)
    sample = _to_be_seen(points, trajectory)
    centre = np.median(sample, 0)

    def turned(angles: Array) -> Array:
        turns = np.tile(np.eye(4), (len(angles), 1, 1))
        turns[:, :3, :3] = Rotation.from_rotvec(angles[:, None] * up).as_matrix()
        turns[:, :3, 3] = centre - turns[:, :3, :3] @ centre
        return turns @ T

    step = max(1, len(points) // MAX_SAMPLES)
    around = turned(np.linspace(0, 2 * np.pi, SIDES, endpoint=False))
    seen = [facing(points[::step], normals[::step], pose).mean() for pose in around]
    phase = np.linspace(0, 2 * np.pi, n, endpoint=False)
    poses = turned(phase if min(seen) > LEAST_SEEN * seen[0] else np.radians(SWING_DEG) * np.sin(phase))
    back = [_distance((sample - pose[:3, 3]) @ pose[:3, :3], camera) for pose in poses[:: max(1, n // SIDES)]]
    poses[:, :3, 3] -= max(0.0, *back) * poses[:, :3, 2]
    return camera, poses


def look_from(backward: Array, up: Array) -> Array:
    """Pose (4, 4) at the origin that looks against `backward`, the picture's upper edge towards `up`."""
    z = -backward / np.linalg.norm(backward)
    x = np.cross(z, up)
    x /= np.linalg.norm(x)
    T = np.eye(4)
    T[:3, :3] = np.stack([x, np.cross(z, x), z], 1)
    return T


def fitted_to(camera: Intrinsics, width: int, height: int) -> Intrinsics:
    """`camera` for a picture of width x height that shows all that it saw, with square pixels kept square."""
    scale = min(width / camera.width, height / camera.height)
    resized = camera.scaled_to(round(camera.width * scale), round(camera.height * scale))
    return resized.cropped((resized.width - width) // 2, (resized.height - height) // 2, width, height)


def spacing(points: NDArray[np.floating], samples: int = 2000) -> float:
    """Side of the square a point has to itself on its surface, world units: the median over a sample of the cloud.

    The k-th neighbour of points of density d on a plane is at about sqrt(k / (pi d)).
    """
    k = min(8, len(points) - 1)
    if k < 1:
        return 1e-3
    tree = cKDTree(points, balanced_tree=False, compact_nodes=False)
    distances, _ = tree.query(points[:: max(1, len(points) // samples)], k=[k + 1])  # the first is the point itself
    return float(np.median(distances) * np.sqrt(np.pi / k)) or 1e-3


def facing(points: NDArray[np.floating], normals: NDArray[np.floating], T_world_camera: Array) -> NDArray[np.bool_]:
    """(N,) whether a point's surface faces the camera or has no normal: walls seen from behind are left out."""
    to_camera = T_world_camera[:3, 3].astype(np.float32) - points
    cosine = np.einsum("ij,ij->i", to_camera, normals)
    return np.asarray((cosine > 0) | (np.abs(normals).sum(1) == 0))


def along_ray(
    points: NDArray[np.floating], origin: Array, direction: Array, radius: float, angle: float = 0.0
) -> int | None:
    """Which of the points (N, 3) a ray meets first: of those within `radius` of it the nearest; None when none is.

    angle: how much wider the ray grows per unit of length, for a perspective view. Points behind the origin count too:
    viewers start a ray anywhere along the line of sight.
    """
    if not len(points):
        return None
    axis = np.asarray(direction, float) / np.linalg.norm(direction)
    offset = points - np.asarray(origin, np.float32)
    along = offset @ axis.astype(np.float32)
    across = np.sqrt(np.maximum(np.einsum("ij,ij->i", offset, offset) - along**2, 0))
    reach = radius + angle * np.maximum(along, 0)
    hit = np.flatnonzero(across <= reach)
    if not len(hit):
        return None
    # Of what lies behind one another the first; of one surface's points the one closest to the ray.
    first = hit[along[hit] <= along[hit].min() + 2 * reach[hit]]
    return int(first[across[first].argmin()])


def frustums(trajectory: Trajectory, camera: Intrinsics, points: NDArray[np.floating]) -> Array:
    """(F, 5, 3) world points of cameras spread over the path: apex and the picture's corners, sized to the scene."""
    n = len(trajectory)
    size = FRUSTUM_SIZE * extent(points)
    shown = np.unique(np.linspace(0, n - 1, min(n, MAX_FRUSTUMS)).round().astype(int))
    pyramids = [pyramid(T, camera, size) for T in trajectory.T_world_camera[shown]]
    return np.array(pyramids).reshape(-1, 5, 3)


def extent(points: NDArray[np.floating]) -> float:
    """Size of the cloud without its strays: the diagonal of the box between the 10th and 90th percentiles."""
    return float(np.linalg.norm(np.subtract(*np.quantile(points, [0.9, 0.1], axis=0))))


def pyramid(T_world_camera: Array, camera: Intrinsics, size: float) -> Array:
    """(5, 3) world points of one camera: its centre and the corners of its picture at distance `size`.

    The corners are in reading order around the picture: top left, top right, bottom right, bottom left.
    """
    u, v = np.array([0, camera.width, camera.width, 0]), np.array([0, 0, camera.height, camera.height])
    corners = size * np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(4)], 1)
    return np.asarray(np.concatenate([np.zeros((1, 3)), corners]) @ T_world_camera[:3, :3].T + T_world_camera[:3, 3])


def _to_be_seen(points: NDArray[np.floating], trajectory: Trajectory) -> Array:
    """Some of the points, and of the cameras, which count as a twentieth (M, 3)."""
    sample = points[:: max(1, len(points) // MAX_SAMPLES)].astype(np.float64)
    if not len(trajectory):
        return sample
    return np.concatenate([sample, np.resize(trajectory.centres, (len(sample) // 20 + 1, 3))])


def _mean_axes(trajectory: Trajectory) -> tuple[Array, Array]:
    """Forward and up of the path: means where the cameras agree, else those of the pose in the middle."""
    T = trajectory.T_world_camera
    if not len(T):
        return np.array([0.0, 0, 1]), np.array([0.0, -1, 0])
    forward, up = T[:, :3, 2].mean(0), -T[:, :3, 1].mean(0)
    middle = T[len(T) // 2]
    forward = forward if np.linalg.norm(forward) > 0.3 else middle[:3, 2]
    up = up if np.linalg.norm(up) > 0.3 else -middle[:3, 1]
    up = up / np.linalg.norm(up)
    forward = forward - (forward @ up) * up  # level: cameras often look down
    if np.linalg.norm(forward) < 0.1:  # all look straight up or down
        forward = middle[:3, 1] * np.sign(middle[:3, 2] @ -up)
    return forward / np.linalg.norm(forward), up


def _off_centre(in_view: Array, distance: float) -> Array:
    """How far right and down (2,) of the picture's middle the fitted share of points (N, 3) appears."""
    xy = in_view[:, :2] / np.maximum(in_view[:, 2:] + distance, 0.1 * distance)
    low, high = np.quantile(xy, [1 - FITTED_SHARE, FITTED_SHARE], axis=0)
    return np.asarray(distance * (low + high) / 2)


def _distance(in_view: Array, camera: Intrinsics) -> float:
    """How far behind the centre the camera must stand so that the fitted share of points (N, 3) is in the picture."""
    tangent = (0.5 * camera.width / camera.fx, 0.5 * camera.height / camera.fy)
    needed = (MARGIN * np.abs(in_view[:, :2]) / tangent).max(1) - in_view[:, 2]
    return float(np.quantile(needed, FITTED_SHARE))
