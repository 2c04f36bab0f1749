"""Structure from motion over a clip's keyframes: COLMAP's features, its global mapper (GLOMAP, Pan et al., ECCV 2024).

All keyframes are solved at once: on fast hand-held clips that the incremental mapper breaks into pieces, the global one
keeps them together. The incremental mapper is the fallback. With poses given, the same matches are only triangulated.
COLMAP works in a process of its own, which closing a generator kills: its global mapper cannot be cancelled.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..atomic import output_error, writable_folder
from ..errors import GeometryError
from ..progress import Progress, Steps
from ..rigid import inverse
from ..types import Array, Intrinsics
from ..video import VideoSource
from .mapper_process import MapperProcess
from .parallax import explained_by_turning
from .sparse import SparseModel

FEATURE_SIDE = 1024  # longest side of the images features are found in, px
CHUNK = 4  # images between two progress reports
MIN_FRAMES = 3
MIN_POINTS = 60
MIN_SINE = np.sin(np.radians(1.5))  # median widest ray angle under which a clip has no parallax to speak of


def reconstruct_sparse(
    video: VideoSource, keyframes: NDArray[np.int64], camera: Intrinsics | None, size: tuple[int, int], workspace: Path
) -> Steps[SparseModel]:
    """Poses and points of the keyframes (M,) (positions among the used frames).

    `camera` at the depth maps' `size` is kept fixed; None: one focal length and radial distortion are estimated for the
    clip. Raises GeometryError when the views are too few, do not hold together or show no parallax, OutOfMemoryError.
    """
    if len(keyframes) < MIN_FRAMES:
        raise GeometryError(
            f"{len(keyframes)} different views are too few to find a camera path, which takes {MIN_FRAMES}: use more "
            "of the clip (--stride, --max-frames, --end), give --poses FILE, or --static if the camera stood still"
        )
    with _mapper_in(workspace) as mapper:
        names = yield from _extract(mapper, video, keyframes, camera)
        yield from mapper.call("match", names=names)
        found = [(yield from mapper.call("global", fixed_camera=camera is not None))]
        if found[0] is None or found[0]["images"] < 0.5 * len(names):
            found.append((yield from mapper.call("incremental", fixed_camera=camera is not None)))
        best = max((f for f in found if f is not None), key=lambda f: f["images"], default=None)
        model = None if best is None else _read(workspace, best, size)
    return _require_parallax(model, len(names))


def triangulate(
    video: VideoSource,
    keyframes: NDArray[np.int64],
    T_world_camera: Array,
    camera: Intrinsics,
    size: tuple[int, int],
    workspace: Path,
) -> Steps[SparseModel]:
    """Points seen from keyframes (M,) whose poses (M, 4, 4) and camera are given and stay as they are."""
    with _mapper_in(workspace) as mapper:
        names = yield from _extract(mapper, video, keyframes, camera)
        yield from mapper.call("match", names=names)
        poses = dict(zip(names, inverse(T_world_camera).tolist(), strict=True))
        found = yield from mapper.call("triangulate", T_camera_world=poses)
        return _read(workspace, found, size)


@contextmanager
def _mapper_in(workspace: Path) -> Iterator[MapperProcess]:
    """COLMAP at work in an empty folder, which is cleared away afterwards."""
    shutil.rmtree(workspace, ignore_errors=True)
    writable_folder(workspace / "images")
    try:
        with MapperProcess(workspace) as mapper:
            yield mapper
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _extract(
    mapper: MapperProcess, video: VideoSource, keyframes: NDArray[np.int64], camera: Intrinsics | None
) -> Steps[list[str]]:
    """Write the keyframes as images and their features into the mapper's database; the images' names."""
    c = None if camera is None else camera.scaled_to(*video.size(FEATURE_SIDE))
    lens = None if c is None else {"numbers": [c.fx, c.fy, c.cx, c.cy], "distortion": c.distortion}
    batch: list[str] = []
    names: list[str] = []
    for position, rgb in video.frames_at(keyframes.tolist(), max_side=FEATURE_SIDE):
        batch.append(f"{position:06d}.png")
        try:
            Image.fromarray(rgb).save(mapper.workspace / "images" / batch[-1], compress_level=1)
        except OSError as error:
            raise output_error(mapper.workspace, error) from error
        if len(batch) == CHUNK or len(names) + len(batch) == len(keyframes):
            done = len(names), len(keyframes)
            yield from mapper.call("features", done, names=batch, lens=lens, first=not names)
            names += batch
            batch = []
            yield Progress("poses", len(names), len(keyframes))
    return names


def _read(workspace: Path, found: dict[str, Any], size: tuple[int, int]) -> SparseModel:
    """The reconstruction that the mapper left in `workspace`, its camera scaled to `size`."""
    with np.load(workspace / found["file"], allow_pickle=False) as arrays:
        model = SparseModel.from_arrays(dict(arrays))
    camera = model.camera.scaled_to(*size)
    return replace(model, camera=camera, focal_sigma_px=model.focal_sigma_px * camera.fx / model.camera.fx)


def _require_parallax(model: SparseModel | None, keyframes: int) -> SparseModel:
    remedy = "film again moving sideways, give --poses FILE, or --static if the camera stood still"
    if model is None or len(model.frames) < MIN_FRAMES or len(model.points) < MIN_POINTS:
        found = 0 if model is None else len(model.frames)
        raise GeometryError(
            f"the camera path cannot be recovered: {found} of {keyframes} keyframes hold together (too little texture, "
            f"blur, or no parallax); --poses odometry needs less texture; or {remedy}"
        )
    if np.median(model.sin_angle) < MIN_SINE:
        raise GeometryError(
            "the clip shows too little parallax: rays to its points meet at "
            f"{np.degrees(np.median(model.sin_angle)):.1f} degrees; {remedy}"
        )
    if explained_by_turning(model):
        raise GeometryError(f"the clip shows no parallax: the camera turned but did not move; {remedy}")
    return model
