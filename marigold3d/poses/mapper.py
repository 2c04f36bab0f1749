"""COLMAP's steps on a folder, as a program that `mapper_process` starts: a line of JSON in, a line of JSON out.

In:  {"step": NAME, ...}; out: {"result": ...} or {"error": TYPE, "text": ..., "errno": number or null}. Results larger
than a line are files in the folder. The program ends when its input does, so that it never outlives who started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, TextIO

import numpy as np

from ..types import Array, Intrinsics
from .sparse import SparseModel, widest_sine

FEATURES = 2048  # keypoints an image
OVERLAP = 10  # keyframes matched to the following ones, and to powers of two beyond
LOOP_FRAMES = 80  # evenly spread keyframes that are all matched with each other: where the path returns, drift ends
MIN_SIGHTINGS = 30  # points a frame must see for its pose to be believed
PARTS, LEAST_OF_PART = 6, 2  # stretches of the path, and keyframes of each, that say how sure the focal length is
PART_ITERATIONS = 10  # from what the whole found: fifty instead change the focal length by 0.01 px
SEED = 0
DECIMALS = 6  # kept of poses, points and lens: what threads that finish in another order change lies at the eleventh

Found = dict[str, Any] | None
"""{"file": name of the arrays of a SparseModel, "images": how many are in it}; None when there is no model."""


def main() -> None:
    """Serve steps in the folder named by the first argument until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, but whoever started it decides
    workspace, orders = Path(sys.argv[1]), SimpleQueue[str]()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what native code prints is no answer
    Thread(target=_listen, args=(sys.stdin, orders), daemon=True).start()
    while True:
        order = json.loads(orders.get())
        try:
            answer = {"result": STEPS[order.pop("step")](workspace, **order)}
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            answer = {"error": type(error).__name__, "text": text, "errno": getattr(error, "errno", None)}
        print(json.dumps(answer), file=answers, flush=True)


def _listen(stdin: TextIO, orders: SimpleQueue[str]) -> None:
    """Pass lines on; at the end of the input leave at once, whatever native work is under way."""
    for line in stdin:
        orders.put(line)
    os._exit(0)


# -- the steps --------------------------------------------------------------------------------------------------------


def features(workspace: Path, names: list[str], lens: dict[str, Any] | None, first: bool) -> None:
    """Find the features of images; all belong to the camera that the `first` batch made."""
    import pycolmap

    if first:
        pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value  # its log is for its developers
        pycolmap.set_random_seed(SEED)
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_RADIAL" if lens is None else "OPENCV" if lens["distortion"] else "PINHOLE"
    if lens is not None:
        reader.camera_params = ",".join(map(repr, [*lens["numbers"], *(lens["distortion"] or ())]))
    if not first:
        reader.existing_camera_id = 1
    mode = pycolmap.CameraMode.SINGLE if first else pycolmap.CameraMode.AUTO
    database, images = workspace / "database.db", workspace / "images"
    pycolmap.Database.open(database).close()  # makes it
    pycolmap.import_images(database, images, mode, names, reader)  # numbers them in order, whichever thread is first
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.use_gpu = False
    extraction.sift.max_num_features = FEATURES
    reader.existing_camera_id = 1
    pycolmap.extract_features(database, images, names, reader_options=reader, extraction_options=extraction)


def match(workspace: Path, names: list[str]) -> None:
    """Match each keyframe with the ones after it, and a spread of keyframes with each other."""
    import pycolmap

    matching = pycolmap.FeatureMatchingOptions()
    matching.use_gpu = False
    # Side by side, COLMAP 4.2's matchers lose matches of now one pair, now another, up to nine in ten of them (seen in
    # 1 of 15 runs of 15 pairs on a busy machine). One alone finds the same each time, a fifth slower on two cores.
    matching.num_threads = 1
    pairing = pycolmap.SequentialPairingOptions()
    pairing.overlap = min(OVERLAP, max(len(names) - 1, 1))
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = SEED
    options = {"matching_options": matching, "verification_options": verification}
    pycolmap.match_sequential(workspace / "database.db", pairing_options=pairing, **options)
    spread = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, LOOP_FRAMES).round().astype(int))]
    (workspace / "pairs.txt").write_text("\n".join(f"{a} {b}" for a, b in combinations(spread, 2)))
    loops = pycolmap.ImportedPairingOptions()
    loops.match_list_path = str(workspace / "pairs.txt")
    pycolmap.match_image_pairs(workspace / "database.db", pairing_options=loops, **options)


def global_model(workspace: Path, fixed_camera: bool) -> Found:
    """The largest model of the global mapper; None when it gives up."""
    import pycolmap

    options = pycolmap.GlobalPipelineOptions()
    options.random_seed = SEED
    pycolmap.set_random_seed(SEED)
    if fixed_camera:
        options.mapper.bundle_adjustment.refine_focal_length = False
        options.mapper.bundle_adjustment.refine_extra_params = False
    try:
        models: dict[int, Any] = pycolmap.global_mapping(
            workspace / "database.db", workspace / "images", workspace, options
        )
    except (RuntimeError, ValueError):  # it gives up on degenerate input by raising; the caller falls back
        return None
    return _kept(workspace, "global", models, focal_is_free=not fixed_camera)


def incremental_model(workspace: Path, fixed_camera: bool) -> Found:
    """The largest model of the incremental mapper."""
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = SEED
    options.ba_refine_focal_length = options.ba_refine_extra_params = not fixed_camera
    options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = not fixed_camera
    models: dict[int, Any] = pycolmap.incremental_mapping(
        workspace / "database.db", workspace / "images", workspace, options
    )
    return _kept(workspace, "incremental", models, focal_is_free=not fixed_camera)


def triangulated(workspace: Path, T_camera_world: dict[str, Any]) -> Found:
    """Points of images whose poses (4, 4) are given by name."""
    import pycolmap

    model = pycolmap.Reconstruction()
    with pycolmap.Database.open(workspace / "database.db") as database:
        for camera in database.read_all_cameras():
            model.add_camera_with_trivial_rig(camera)
        for row in database.read_all_images():
            image = pycolmap.Image(name=row.name, camera_id=row.camera_id, image_id=row.image_id)
            model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.array(T_camera_world[row.name])[:3]))
    model = pycolmap.triangulate_points(model, workspace / "database.db", workspace / "images", workspace)
    return _kept(workspace, "triangulated", {0: model}, poses_given=True)


STEPS: dict[str, Callable[..., Any]] = {
    "features": features,
    "match": match,
    "global": global_model,
    "incremental": incremental_model,
    "triangulate": triangulated,
}


# -- results ----------------------------------------------------------------------------------------------------------


def _kept(
    workspace: Path, name: str, models: dict[int, Any], *, poses_given: bool = False, focal_is_free: bool = False
) -> Found:
    """Leave the largest of the models as arrays in the workspace."""
    model, *others = sorted(models.values(), key=lambda m: (-m.num_reg_images(), -m.num_points3D())) or [None]
    if model is None:
        return None
    found = replace(
        _as_arrays(model, poses_given),
        focal_sigma_px=_focal_sigma_px(model) if focal_is_free else np.nan,
        other_models=np.array([m.num_reg_images() for m in others], np.int64),
    )
    np.savez(workspace / f"{name}.npz", **found.as_arrays())  # type: ignore[arg-type]
    return {"file": f"{name}.npz", "images": model.num_reg_images()}


def _focal_sigma_px(model: Any) -> float:
    """Standard deviation of the focal length, px: the larger of what the keypoints and what parts of the clip say."""
    return float(np.fmax(_focal_sigma_of_keypoints_px(model), _focal_sigma_of_parts_px(model)))


def _focal_sigma_of_parts_px(model: Any) -> float:
    """How far the focal length moves when a stretch of the path is left out: the delete-a-group jackknife (Kuensch,
    "The Jackknife and the Bootstrap for General Stationary Observations", Annals of Statistics 1989, section 2).

    It sees what keypoints share along the path: rolling shutter, blur, a lens that the model does not fit. NaN of few
    keyframes.
    """
    import pycolmap

    frames = sorted(model.reg_frame_ids())
    if len(frames) < PARTS * LEAST_OF_PART:
        return float("nan")
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.ceres.solver_options.max_num_iterations = PART_ITERATIONS
    focal_px = []
    for left_out in np.array_split(frames, PARTS):
        rest = pycolmap.Reconstruction(model)
        for frame in left_out.tolist():
            rest.deregister_frame(frame)
        pycolmap.bundle_adjustment(rest, options)
        focal_px.append(next(iter(rest.cameras.values())).params[0])
    return float(np.sqrt((PARTS - 1) * np.var(focal_px)))


def _focal_sigma_of_keypoints_px(model: Any) -> float:
    """What it is if keypoints err independently: the focal length's marginal in the bundle adjustment's covariance
    (J^T J)^-1, times the keypoints' scatter. Poses and points are free, so what they make up for counts. NaN if it is
    singular.
    """
    import pycolmap

    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.ceres.solver_options.max_num_iterations = 0  # the model stays what it is
    problem = pycolmap.BundleAdjustmentConfig()
    for image in model.reg_image_ids():
        problem.add_image(image)
    problem.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    adjuster = pycolmap.create_default_ceres_bundle_adjuster(options, problem, model)
    residuals = adjuster.solve().num_residuals
    found = pycolmap.estimate_ba_covariance(pycolmap.BACovarianceOptions(), model, adjuster)
    covariance = None if found is None else found.get_other_params_cov(next(iter(model.cameras.values())).params)
    if covariance is None or not residuals:
        return float("nan")
    model.update_point_3d_errors()
    errors = np.array([p.error for p in model.points3D.values()])  # mean distance of a point's keypoints, px
    return float(np.sqrt(covariance[0, 0]) * np.sqrt(np.mean(errors**2) / 2))  # a coordinate's share of the distance


def _as_arrays(model: Any, poses_given: bool = False) -> SparseModel:
    """COLMAP's reconstruction as a SparseModel; its camera at the size of the images."""
    sure = (i for i in model.images.values() if i.has_pose and i.num_points3D >= MIN_SIGHTINGS)
    images = sorted(sure, key=lambda i: i.name)
    row = {image.image_id: k for k, image in enumerate(images)}
    ids = list(model.points3D)
    points = np.array([model.points3D[i].xyz for i in ids]).reshape(-1, 3).round(DECIMALS)
    seen = [
        (row[e.image_id], p) for p, i in enumerate(ids) for e in model.points3D[i].track.elements if e.image_id in row
    ]
    seen_frame, seen_point = np.array(seen, np.int64).reshape(-1, 2).T
    T: Array = np.tile(np.eye(4), (len(images), 1, 1))
    for k, image in enumerate(images):
        T[k, :3] = image.cam_from_world().inverse().matrix()
    if not poses_given:
        T = T.round(DECIMALS)
    sine = widest_sine(T[:, :3, 3], points, seen_frame, seen_point)
    frames = np.array([int(Path(image.name).stem) for image in images], np.int64)
    return SparseModel(_intrinsics(next(iter(model.cameras.values()))), frames, T, points, sine, seen_frame, seen_point)


def _intrinsics(camera: Any) -> Intrinsics:
    p = camera.params.round(DECIMALS + 3).tolist()  # one that was given comes back as it was
    if camera.model_name == "SIMPLE_RADIAL":
        f, cx, cy, k1 = p
        return Intrinsics(f, f, cx, cy, camera.width, camera.height, (k1, 0.0, 0.0, 0.0))
    return Intrinsics(*p[:4], camera.width, camera.height, tuple(p[4:]) or None)  # type: ignore[call-arg]  # PINHOLE or OPENCV


if __name__ == "__main__":
    main()
