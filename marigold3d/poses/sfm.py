"""Structure from motion over a clip's keyframes: COLMAP's features, its global mapper (GLOMAP, Pan et al., ECCV 2024).

All keyframes are solved at once: on fast hand-held clips that the incremental mapper breaks into pieces, the global one
keeps them together. The incremental mapper is the fallback. With poses given, the same matches are only triangulated.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
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
from .parallax import explained_by_turning
from .sparse import SparseModel, widest_sine

FEATURE_SIDE = 1024  # longest side of the images features are found in, px
FEATURES = 2048  # keypoints an image
OVERLAP = 10  # keyframes matched to the following ones, and to powers of two beyond
LOOP_FRAMES = 80  # evenly spread keyframes that are all matched with each other: where the path returns, drift ends
MIN_SIGHTINGS = 30  # points a frame must see for its pose to be believed
CHUNK = 4  # images between two progress reports
MIN_FRAMES = 3
MIN_POINTS = 60
MIN_SINE = np.sin(np.radians(1.5))  # median widest ray angle under which a clip has no parallax to speak of
SEED = 0


def reconstruct_sparse(
    video: VideoSource, keyframes: NDArray[np.int64], camera: Intrinsics | None, size: tuple[int, int], workspace: Path
) -> Steps[SparseModel]:
    """Poses and points of the keyframes (M,) (positions among the used frames).

    `camera` at the depth maps' `size` is kept fixed; None: one focal length and radial distortion are estimated for the
    clip. Raises GeometryError when the views do not hold together or show no parallax.
    """
    names = yield from _extract(video, keyframes, camera, workspace)
    yield from _match(workspace, names)
    models = yield from _waiting("poses", lambda token: _global(workspace, camera, token))
    best = _largest(models)
    if best is None or best.num_reg_images() < 0.5 * len(names):
        models = yield from _waiting("poses", lambda token: _incremental(workspace, camera, token))
        best = max(
            (m for m in (best, _largest(models)) if m is not None), key=lambda m: m.num_reg_images(), default=None
        )
    model = None if best is None else _as_arrays(best, size)
    shutil.rmtree(workspace, ignore_errors=True)
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
    names = yield from _extract(video, keyframes, camera, workspace)
    yield from _match(workspace, names)
    poses = dict(zip(names, inverse(T_world_camera), strict=True))
    model = yield from _waiting("poses", lambda _: _triangulate(workspace, poses))
    arrays = _as_arrays(model, size)
    shutil.rmtree(workspace, ignore_errors=True)
    return arrays


# -- the steps --------------------------------------------------------------------------------------------------------


def _extract(
    video: VideoSource, keyframes: NDArray[np.int64], camera: Intrinsics | None, workspace: Path
) -> Steps[list[str]]:
    """Write the keyframes as images and their features into workspace/database.db; the images' names."""
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value  # its log is for its developers
    pycolmap.set_random_seed(SEED)
    shutil.rmtree(workspace, ignore_errors=True)
    writable_folder(workspace / "images")
    size = video.size(FEATURE_SIDE)
    batch: list[str] = []
    names: list[str] = []
    for position, rgb in video.frames_at(keyframes.tolist(), max_side=FEATURE_SIDE):
        batch.append(f"{position:06d}.png")
        try:
            Image.fromarray(rgb).save(workspace / "images" / batch[-1], compress_level=1)
        except OSError as error:
            raise output_error(workspace, error) from error
        if len(batch) == CHUNK or len(names) + len(batch) == len(keyframes):
            _features(workspace, batch, camera, size)
            names += batch
            batch = []
            yield Progress("poses", len(names), len(keyframes))
    return names


def _features(workspace: Path, names: list[str], camera: Intrinsics | None, size: tuple[int, int]) -> None:
    import pycolmap

    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_RADIAL" if camera is None else "OPENCV" if camera.distortion else "PINHOLE"
    if camera is not None:
        c = camera.scaled_to(*size)
        reader.camera_params = ",".join(map(repr, [c.fx, c.fy, c.cx, c.cy, *(c.distortion or ())]))
    first = not (workspace / "database.db").exists()
    if not first:  # every batch belongs to the camera the first one made
        reader.existing_camera_id = 1
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.use_gpu = False
    extraction.sift.max_num_features = FEATURES
    pycolmap.extract_features(
        workspace / "database.db",
        workspace / "images",
        image_names=names,
        camera_mode=pycolmap.CameraMode.SINGLE if first else pycolmap.CameraMode.AUTO,
        reader_options=reader,
        extraction_options=extraction,
    )


def _match(workspace: Path, names: list[str]) -> Steps[None]:
    """Match each keyframe with the ones after it, and a spread of keyframes with each other."""
    import pycolmap

    matching = pycolmap.FeatureMatchingOptions()
    matching.use_gpu = False
    pairing = pycolmap.SequentialPairingOptions()
    pairing.overlap = min(OVERLAP, max(len(names) - 1, 1))
    yield from _waiting(
        "poses",
        lambda token: pycolmap.match_sequential(
            workspace / "database.db", matching_options=matching, pairing_options=pairing, cancellation_token=token
        ),
    )
    spread = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, LOOP_FRAMES).round().astype(int))]
    (workspace / "pairs.txt").write_text("\n".join(f"{a} {b}" for a, b in combinations(spread, 2)))
    loops = pycolmap.ImportedPairingOptions()
    loops.match_list_path = str(workspace / "pairs.txt")
    yield from _waiting(
        "poses",
        lambda token: pycolmap.match_image_pairs(
            workspace / "database.db", matching_options=matching, pairing_options=loops, cancellation_token=token
        ),
    )


def _global(workspace: Path, camera: Intrinsics | None, _token: Any) -> dict[int, Any]:
    import pycolmap

    options = pycolmap.GlobalPipelineOptions()
    options.random_seed = SEED
    if camera is not None:
        options.mapper.bundle_adjustment.refine_focal_length = False
        options.mapper.bundle_adjustment.refine_extra_params = False
    try:
        models: dict[int, Any] = pycolmap.global_mapping(
            workspace / "database.db", workspace / "images", workspace, options
        )
    except (RuntimeError, ValueError):  # it gives up on degenerate input by raising; the caller falls back
        return {}
    return models


def _incremental(workspace: Path, camera: Intrinsics | None, token: Any) -> dict[int, Any]:
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = SEED
    options.ba_refine_focal_length = options.ba_refine_extra_params = camera is None
    options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = camera is None
    models: dict[int, Any] = pycolmap.incremental_mapping(
        workspace / "database.db", workspace / "images", workspace, options, cancellation_token=token
    )
    return models


def _triangulate(workspace: Path, T_camera_world: dict[str, Array]) -> Any:
    import pycolmap

    model = pycolmap.Reconstruction()
    with pycolmap.Database.open(workspace / "database.db") as database:
        for camera in database.read_all_cameras():
            model.add_camera_with_trivial_rig(camera)
        for row in database.read_all_images():
            image = pycolmap.Image(name=row.name, camera_id=row.camera_id, image_id=row.image_id)
            model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(T_camera_world[row.name][:3]))
    return pycolmap.triangulate_points(model, workspace / "database.db", workspace / "images", workspace)


def _waiting(stage: str, work: Callable[[Any], Any]) -> Steps[Any]:
    """Run native work in a thread, yielding so that a front-end stays alive; closing the generator cancels it."""
    import pycolmap

    token = pycolmap.CancellationToken()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, token)
        try:
            while not future.done():
                yield Progress(stage, 0, None)
                _wait(future)
        except BaseException:
            token.cancel()
            raise
        return future.result()


def _wait(future: Any, seconds: float = 0.2) -> None:
    from concurrent.futures import wait

    wait([future], timeout=seconds)


# -- results ----------------------------------------------------------------------------------------------------------


def _largest(models: dict[int, Any]) -> Any | None:
    return max(models.values(), key=lambda m: (m.num_reg_images(), m.num_points3D()), default=None)


def _as_arrays(model: Any, size: tuple[int, int]) -> SparseModel:
    """COLMAP's reconstruction as a SparseModel with its camera scaled to `size`."""
    sure = (i for i in model.images.values() if i.has_pose and i.num_points3D >= MIN_SIGHTINGS)
    images = sorted(sure, key=lambda i: i.name)
    row = {image.image_id: k for k, image in enumerate(images)}
    ids = list(model.points3D)
    points = np.array([model.points3D[i].xyz for i in ids]).reshape(-1, 3)
    seen = [
        (row[e.image_id], p) for p, i in enumerate(ids) for e in model.points3D[i].track.elements if e.image_id in row
    ]
    seen_frame, seen_point = np.array(seen, np.int64).reshape(-1, 2).T
    T = np.tile(np.eye(4), (len(images), 1, 1))
    for k, image in enumerate(images):
        T[k, :3] = image.cam_from_world().inverse().matrix()
    sine = widest_sine(T[:, :3, 3], points, seen_frame, seen_point)
    frames = np.array([int(Path(image.name).stem) for image in images], np.int64)
    camera = _intrinsics(next(iter(model.cameras.values()))).scaled_to(*size)
    return SparseModel(camera, frames, T, points, sine, seen_frame, seen_point)


def _intrinsics(camera: Any) -> Intrinsics:
    p = camera.params.tolist()
    if camera.model_name == "SIMPLE_RADIAL":
        f, cx, cy, k1 = p
        return Intrinsics(f, f, cx, cy, camera.width, camera.height, (k1, 0.0, 0.0, 0.0))
    return Intrinsics(*p[:4], camera.width, camera.height, tuple(p[4:]) or None)  # type: ignore[call-arg]  # PINHOLE or OPENCV


def _require_parallax(model: SparseModel | None, keyframes: int) -> SparseModel:
    remedy = "film again moving sideways, give --poses FILE, or --static if the camera stood still"
    if model is None or len(model.frames) < MIN_FRAMES or len(model.points) < MIN_POINTS:
        found = 0 if model is None else len(model.frames)
        raise GeometryError(
            f"the camera path cannot be recovered: {found} of {keyframes} keyframes hold together (too little texture, "
            f"blur, or no parallax); {remedy}"
        )
    if np.median(model.sin_angle) < MIN_SINE:
        raise GeometryError(
            "the clip shows too little parallax: rays to its points meet at "
            f"{np.degrees(np.median(model.sin_angle)):.1f} degrees; {remedy}"
        )
    if explained_by_turning(model):
        raise GeometryError(f"the clip shows no parallax: the camera turned but did not move; {remedy}")
    return model
