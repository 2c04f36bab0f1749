"""Runs for programs that take cameras, points and frames together: nerfstudio, COLMAP, Gaussian splatting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .atomic import atomic_path
from .errors import InputError
from .export.clouds import thinned, thinned_rows
from .export.colmap_binary import write_colmap_binary
from .export.opensfm import write_opensfm
from .export.ply import write_ply
from .export.tracks import Tracks, joined, seen_in
from .export.trajectories import image_names, write_colmap, write_transforms
from .finished import clip_of, scene_colors
from .lens import Lens, undistorted
from .progress import Progress, Steps
from .store import Run
from .types import Intrinsics, PointCloud, Trajectory, Units

FIRST_GAUSSIANS = 200_000  # what splatting begins with: as many as a dense model of COLMAP's would give it
TRACKED = 5_000  # points with tracks: enough for any pair of images, and still small files for long clips
JPEG_QUALITY = 95
Picture = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def units_of(run: Run) -> Units:
    units: Units = run.manifest["units"]
    return units


def cloud_of(run: Run) -> PointCloud:
    """InputError when the run has none."""
    if not run.has_cloud:
        raise InputError(f"{run.path} has no cloud.ply: make it with `marigold3d fuse {run.path}`")
    return run.cloud()


def path_of(run: Run) -> Trajectory:
    """One pose a frame. InputError when the run has no camera path, or another number of depth maps."""
    if not (run.path / "trajectory.txt").is_file():
        raise InputError(f"{run.path} has no camera path: run again without --no-poses")
    return run.posed_frames()


def frames_of(run: Run) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(source frame, rgb) of all frames that have depth, at its size. InputError when the clip is gone."""
    indices = np.array(run.frame_indices, np.int64)
    for row, rgb in scene_colors(run, indices):
        yield int(indices[row]), rgb


def original_frames(run: Run) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The same at the clip's own size, which `original_camera` describes."""
    video, wanted = clip_of(run), set(run.frame_indices)
    camera = run.camera()
    if video.size(max(camera.width, camera.height)) != (camera.width, camera.height):
        raise InputError(f"{video.info.path} is not the clip that {run.path} was made of: put that clip back")
    for frame in video.frames():
        if frame.index in wanted:
            wanted.remove(frame.index)
            yield frame.index, frame.rgb
        if not wanted:
            return
    raise InputError(f"{video.info.path} is not the clip that {run.path} was made of: it has no frame {min(wanted)}")


def original_camera(run: Run) -> Intrinsics:
    """The camera of the clip's frames as they are. InputError when the clip is gone."""
    info = clip_of(run).info
    return run.camera().scaled_to(info.width, info.height)


def camera_of(run: Run, images: bool) -> Intrinsics:
    """With the clip's frames their own camera; without them the depth maps'."""
    return original_camera(run) if images else run.camera()


def beside(path: Path) -> tuple[Path, Path]:
    """Where `nerfstudio` puts frames and points, for a transforms.json of this name."""
    return path.with_name("images"), path.with_name(f"{path.stem}_points.ply")


def nerfstudio(run: Run, path: Path, images: bool) -> Steps[None]:
    """transforms.json; with `images` also what `ns-train` reads beside it: the frames and the first points."""
    trajectory, names, points = path_of(run), _names(run, images, "images/"), None
    if images:
        cloud, (folder, file) = thinned(cloud_of(run), FIRST_GAUSSIANS), beside(path)
        yield from _write_images(run, folder)
        write_ply(file, cloud)
        points = file.name
    write_transforms(path, trajectory, camera_of(run, images), names, units_of(run), points)


def colmap(run: Run, folder: Path, images: bool) -> Steps[None]:
    """cameras.txt, images.txt and points3D.txt; with `images` the frames in images/."""
    trajectory, camera, names, cloud, tracks = yield from _model(run, folder, images)
    write_colmap(folder, trajectory, camera, names, units_of(run), cloud, tracks)


def colmap_binary(run: Run, folder: Path, images: bool) -> Steps[None]:
    """As `colmap`, in COLMAP's binary files."""
    trajectory, camera, names, cloud, tracks = yield from _model(run, folder, images)
    write_colmap_binary(folder, trajectory, camera, names, cloud, tracks)


def opensfm(run: Run, folder: Path, images: bool) -> Steps[None]:
    """reconstruction.json and tracks.csv; with `images` the frames in images/."""
    trajectory, camera, names, cloud, tracks = yield from _model(run, folder, images)
    write_opensfm(folder, trajectory, camera, names, cloud, tracks)


def _model(
    run: Run, folder: Path, images: bool
) -> Steps[tuple[Trajectory, Intrinsics, Sequence[str], PointCloud, Tracks]]:
    """What models of structure from motion are made of; writes the frames to images/ if asked to."""
    trajectory, names, cloud = path_of(run), _names(run, images), cloud_of(run)
    if images:
        yield from _write_images(run, folder / "images")
    camera = camera_of(run, images)
    tracks = yield from _tracks(run, trajectory, cloud, camera)
    return trajectory, camera, names, cloud, tracks


def gaussian_splatting(run: Run, folder: Path, images: bool) -> Steps[None]:
    """images/ and sparse/0/*.bin, as the first implementation and gsplat read them: pinhole frames, and points."""
    del images  # it is nothing without them
    trajectory, cloud = path_of(run), thinned(cloud_of(run), FIRST_GAUSSIANS)
    camera, straighten = pinhole_of(original_camera(run))
    yield from _write_images(run, folder / "images", straighten)
    write_colmap_binary(folder / "sparse" / "0", trajectory, camera, _names(run, True), cloud)


def _tracks(run: Run, trajectory: Trajectory, cloud: PointCloud, exported: Intrinsics) -> Steps[Tracks]:
    """Which frames see some of the cloud's points, by their depth maps; at the pixels of the `exported` camera."""
    rows = thinned_rows(len(cloud), TRACKED)
    points, camera, frames, seen = cloud.points[rows], run.camera(), run.frame_indices, []
    for done, (index, T_world_camera) in enumerate(zip(frames, trajectory.T_world_camera, strict=True), start=1):
        found, uv = seen_in(run.depth(index, sigma=False), points, T_world_camera, camera)
        seen.append((found, uv * (exported.width / camera.width, exported.height / camera.height)))
        yield Progress("match", done, len(frames))
    return joined(rows, seen)


def pinhole_of(camera: Intrinsics) -> tuple[Intrinsics, Picture]:
    """A camera without distortion, and what turns the pictures of `camera` into its own."""
    if not camera.distortion or not any(camera.distortion):
        return camera.undistorted(), lambda rgb: rgb
    lens = Lens("OPENCV", camera.width, camera.height, (camera.fx, camera.fy, camera.cx, camera.cy, *camera.distortion))
    return lens.pinhole, lambda rgb: undistorted(rgb, lens)


def _names(run: Run, images: bool, folder: str = "") -> Sequence[str]:
    """PNG is what other tools are told to look for; where frames are written, they are JPEG."""
    names = image_names(run.frame_indices, ".jpg" if images else ".png")
    return [folder + name for name in names] if images else names


def _write_images(run: Run, folder: Path, change: Picture = lambda rgb: rgb) -> Steps[None]:
    """The frames as JPEG at the clip's own size, changed on the way."""
    clip_of(run)  # before anything is written
    total = len(run.frame_indices)
    for done, (index, rgb) in enumerate(original_frames(run), start=1):
        with atomic_path(folder / image_names([index], ".jpg")[0]) as temporary:
            Image.fromarray(change(rgb)).save(temporary, quality=JPEG_QUALITY, subsampling=0)
        yield Progress("files", done, total)
