"""Look at a finished run: an Open3D window, or a picture that needs neither a display nor Open3D."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .atomic import atomic_path
from .cloud_colors import COLORINGS, ColorBy, Coloring, color_cloud
from .errors import InputError, UsageError
from .progress import Progress, Steps
from .splat import render_points, sampled_mesh
from .store import Run
from .types import Array, Intrinsics, PointCloud, Trajectory, TriangleMesh
from .viewpoint import FRUSTUM_EDGES, facing, fitted_to, frustums, overview, spacing, turntable

SPLAT_SIZE = 1.6  # splat diameter in point spacings: neighbours overlap, edges stay sharp
MESH_SPLAT_SIZE = 3.0  # the same for points strewn over a mesh, which leave larger gaps
MESH_SAMPLES = 1_500_000  # points that a picture shows a mesh by
PATH_COLOR = (255, 176, 32)
PATH_SPACING = 0.0015  # of the view distance: splats along the drawn camera path


def screenshot(
    run: Run,
    path: str | Path,
    *,
    width: int = 1280,
    height: int = 960,
    from_frame: int | None = None,
    cameras: bool = True,
    color: ColorBy = "rgb",
    mesh: bool = False,
) -> Path:
    """Write a picture of the run's cloud, or its mesh, (PNG or JPEG, by suffix) and return its path.

    The view is from behind and above the camera path with the `cameras` drawn in, or that of source frame `from_frame`;
    color: what the points' colours say. Raises InputError when the run has no cloud or no such frame.
    """
    image = picture(run, width=width, height=height, from_frame=from_frame, cameras=cameras, color=color, mesh=mesh)
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary)
    return Path(path)


def picture(
    run: Run,
    *,
    width: int = 1280,
    height: int = 960,
    from_frame: int | None = None,
    cameras: bool = True,
    color: ColorBy = "rgb",
    mesh: bool = False,
) -> NDArray[np.uint8]:
    """The picture `screenshot` writes, (height, width, 3) uint8 sRGB."""
    cloud = _coloured(run, color, mesh)
    if from_frame is not None:
        camera, T_world_camera = frame_view(run, from_frame, width, height)
        return render_points(cloud.points, cloud.colors, camera, T_world_camera, _splat_size(cloud, mesh))
    camera, T_world_camera = overview(cloud.points, run.trajectory(), width, height)
    return _Drawing(run, cloud, _splat_size(cloud, mesh), T_world_camera, cameras).seen_from(camera, T_world_camera)


def orbit(
    run: Run,
    path: str | Path,
    *,
    width: int = 1280,
    height: int = 960,
    seconds: float = 8.0,
    fps: float = 25.0,
    cameras: bool = True,
    color: ColorBy = "rgb",
    mesh: bool = False,
) -> Steps[Path]:
    """Write a video (.mp4, .mov or .mkv) that goes round the run's cloud, or mesh, once and can be looped.

    Raises InputError when the run has no cloud, OutputError when the file cannot be written.
    """
    from .video import video_writer

    cloud = _coloured(run, color, mesh)
    n = max(2, round(seconds * fps))
    camera, poses = turntable(cloud.points, cloud.normals, run.trajectory(), width, height, n)
    drawing = _Drawing(run, cloud, _splat_size(cloud, mesh), poses[0], cameras)
    with video_writer(path, fps) as add:
        for done, T_world_camera in enumerate(poses, 1):
            add(drawing.seen_from(camera, T_world_camera))
            yield Progress("orbit", done, n)
    return Path(path)


class _Drawing:
    """A run's cloud with the cameras drawn in, to be looked at from anywhere; the lines' width is that for a pose."""

    def __init__(self, run: Run, cloud: PointCloud, splat_size: float, T_world_camera: Array, cameras: bool) -> None:
        self._cloud, self._size = cloud, splat_size
        self._path = np.zeros((0, 3), np.float32)
        self._width = PATH_SPACING * float(np.linalg.norm(np.median(cloud.points, 0) - T_world_camera[:3, 3]))
        if cameras:
            self._path = _sampled(*camera_lines(run.trajectory(), run.camera(), cloud.points), self._width)

    def seen_from(self, camera: Intrinsics, T_world_camera: Array) -> NDArray[np.uint8]:
        """(camera.height, camera.width, 3) uint8."""
        cloud = self._cloud.select(facing(self._cloud.points, self._cloud.normals, T_world_camera))
        line_colors = np.broadcast_to(np.array(PATH_COLOR, np.uint8), self._path.shape)
        sizes = [np.full(len(cloud), self._size), np.full(len(self._path), 1.4 * self._width)]
        return render_points(
            np.concatenate([cloud.points, self._path]),
            np.concatenate([cloud.colors, line_colors]),
            camera,
            T_world_camera,
            np.concatenate(sizes).astype(np.float32),
        )


def frame_view(run: Run, frame_index: int, width: int, height: int) -> tuple[Intrinsics, Array]:
    """Camera and pose of a source frame, for a picture of width x height. InputError when the run has no such frame."""
    indices, trajectory = run.frame_indices, run.trajectory()
    if frame_index not in indices or len(indices) != len(trajectory):
        known = f"{indices[0]} to {indices[-1]}" if indices else "none"
        raise InputError(f"{run.path} has no posed frame {frame_index}: it holds {len(indices)} frames ({known})")
    T_world_camera = trajectory.T_world_camera[indices.index(frame_index)]
    return fitted_to(run.camera().undistorted(), width, height), T_world_camera


def camera_lines(
    trajectory: Trajectory, camera: Intrinsics, points: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vertices (M, 3) in the world and edges (K, 2) that draw the camera path and some of its frustums."""
    n = len(trajectory)
    pyramids = frustums(trajectory, camera, points)  # (F, 5, 3)
    path = np.stack([np.arange(n - 1), np.arange(1, n)], 1) if n > 1 else np.zeros((0, 2), np.int64)
    first = n + 5 * np.arange(len(pyramids))[:, None, None]
    edges = np.concatenate([path, (first + FRUSTUM_EDGES).reshape(-1, 2)])
    vertices = np.concatenate([trajectory.centres, pyramids.reshape(-1, 3)])
    return vertices.astype(np.float32), edges.astype(np.int64)


def show(run: Run, color: ColorBy = "rgb", *, mesh: bool = False) -> None:
    """Open a window with the cloud, or the mesh, and the camera path; returns when it is closed.

    Of a cloud the key C shows the next of `cloud_colors.COLORINGS`; Open3D's own keys: + and - change the points' size,
    P writes a picture, H lists the others. Raises UsageError without a display or a working Open3D, naming the way out.
    """
    cloud, trajectory = _coloured(run, color), run.trajectory()
    _require_display()
    vertices, edges = camera_lines(trajectory, run.camera(), cloud.points)
    camera, T_world_camera = overview(cloud.points, trajectory, 1280, 960)
    with stdout_to_stderr():
        o3d = _open3d()
        window = o3d.visualization.VisualizerWithKeyCallback()
        if not window.create_window(f"marigold3d: {run.path.name}", camera.width, camera.height):
            raise UsageError(f"Open3D cannot open a window here: {_PICTURE_INSTEAD}; {_ASK_DOCTOR}")
        points = _o3d_cloud(o3d, cloud)
        surface = _o3d_mesh(o3d, run.mesh()) if mesh else points
        for geometry in (surface, _o3d_lines(o3d, vertices, edges)):
            window.add_geometry(geometry)
        following = cycle(COLORINGS[COLORINGS.index(color) + 1 :] + COLORINGS[: COLORINGS.index(color) + 1])

        def recolour(visualizer: Any) -> bool:
            shown = coloring(run, next(following))
            points.colors = o3d.utility.Vector3dVector(shown.colors / 255.0)
            visualizer.update_geometry(points)
            print(shown.legend, file=sys.stderr)
            return True

        if not mesh:
            window.register_key_callback(ord("C"), recolour)
        options = window.get_render_option()
        options.background_color, options.point_size = np.array([0.2, 0.22, 0.25]), 2.5
        look = window.get_view_control()
        look.set_front(-T_world_camera[:3, 2])
        look.set_up(-T_world_camera[:3, 1])
        look.set_lookat(np.median(cloud.points, 0).astype(float))
        look.set_zoom(0.6)
        window.run()
        window.destroy_window()


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what C++ code prints on file descriptor 1 to stderr: Open3D's renderer logs there, stdout is for results."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


_PICTURE_INSTEAD = "write a picture with `marigold3d view RUN --screenshot view.png`"
_ASK_DOCTOR = "`marigold3d doctor` says what is missing"


def coloring(run: Run, color: ColorBy) -> Coloring:
    """The colours of the run's cloud by one of its properties."""
    return _coloring_of(run, _cloud(run), color)


def _splat_size(cloud: PointCloud, mesh: bool) -> float:
    return (MESH_SPLAT_SIZE if mesh else SPLAT_SIZE) * spacing(cloud.points)


def _coloring_of(run: Run, cloud: PointCloud, color: ColorBy) -> Coloring:
    trajectory, indices = run.trajectory(), run.frame_indices
    poses = dict(zip(indices, trajectory.T_world_camera, strict=True)) if len(indices) == len(trajectory) else None
    return color_cloud(cloud, color, poses)


def _coloured(run: Run, color: ColorBy, mesh: bool = False) -> PointCloud:
    """The cloud, or points all over the mesh; of a mesh colours say RGB or height, the rest is unknown."""
    cloud = sampled_mesh(run.mesh(), MESH_SAMPLES) if mesh else _cloud(run)
    return cloud if color == "rgb" else replace(cloud, colors=_coloring_of(run, cloud, color).colors)


def _cloud(run: Run) -> PointCloud:
    if not run.has_cloud:
        raise InputError(f"{run.path} has no cloud.ply: run again with --fuse")
    cloud = run.cloud()
    if not len(cloud):
        raise InputError(f"{run.path / 'cloud.ply'} has no points: there is nothing to show")
    return cloud


def _require_display() -> None:
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UsageError(f"there is no display to open a window on: {_PICTURE_INSTEAD}")


def _open3d() -> Any:
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise UsageError(f"Open3D cannot be loaded ({error}): {_PICTURE_INSTEAD}; {_ASK_DOCTOR}") from None
    return open3d


def _sampled(vertices: NDArray[np.float32], edges: NDArray[np.int64], step: float) -> NDArray[np.float32]:
    """Points (N, 3) about every `step` along the edges."""
    lines = [np.zeros((0, 3), np.float32)]
    for start, end in vertices[edges]:
        count = 2 + int(np.linalg.norm(end - start) / step)
        lines.append(start + np.linspace(0, 1, count, dtype=np.float32)[:, None] * (end - start))
    return np.concatenate(lines)


def _o3d_cloud(o3d: Any, cloud: PointCloud) -> Any:
    geometry = o3d.geometry.PointCloud()
    geometry.points = o3d.utility.Vector3dVector(cloud.points.astype(np.float64))
    geometry.colors = o3d.utility.Vector3dVector(cloud.colors / 255.0)
    return geometry


def _o3d_mesh(o3d: Any, mesh: TriangleMesh) -> Any:
    vertices = o3d.utility.Vector3dVector(mesh.vertices.astype(np.float64))
    geometry = o3d.geometry.TriangleMesh(vertices, o3d.utility.Vector3iVector(mesh.faces))
    geometry.vertex_normals = o3d.utility.Vector3dVector(mesh.normals.astype(np.float64))
    geometry.vertex_colors = o3d.utility.Vector3dVector(mesh.colors / 255.0)
    return geometry


def _o3d_lines(o3d: Any, vertices: NDArray[np.float32], edges: NDArray[np.int64]) -> Any:
    geometry = o3d.geometry.LineSet()
    geometry.points = o3d.utility.Vector3dVector(vertices.astype(np.float64))
    geometry.lines = o3d.utility.Vector2iVector(edges.astype(np.int32))
    geometry.paint_uniform_color(np.array(PATH_COLOR) / 255.0)
    return geometry
