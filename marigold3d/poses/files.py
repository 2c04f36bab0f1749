"""Camera poses from the files other tools write, brought to `T_world_camera` and OpenCV axes.

| file | poses in it | matched to the clip's frames by |
|---|---|---|
| `.txt`, `.tum` | TUM: timestamp tx ty tz qx qy qz qw, camera-to-world | timestamp, or frame index |
| folder with `cameras.*`, `images.*` | COLMAP, text or binary, world-to-camera | name, number or order |
| `transforms.json` or its folder | nerfstudio, instant-ngp: camera-to-world, OpenGL axes | name, number or order |
| `reconstruction.json` | OpenSfM, world-to-camera | name, number or order |
| `.r3d`, or Record3D's `metadata` | ARKit: camera-to-world, OpenGL axes, metres | row |
| Polycam's export, its `keyframes` or cameras | ARKit: camera-to-world, OpenGL axes, metres | name, number or order |
| `.npy` | (N, 4, 4) or (N, 3, 4) camera-to-world; a row of NaN is a frame without a pose | row |
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..lens import Lens
from ..types import Array, Trajectory
from .arkit_files import is_record3d, polycam_cameras, read_polycam, read_record3d
from .camera_files import read_camera
from .colmap_files import find_model, read_model
from .convention import COLMAP, OPENCV, TUM
from .matching import ClipFrames, PosedFrames, poses_from_quaternions
from .opensfm_files import read_opensfm_poses
from .records import PoseRecords
from .transforms_files import read_transforms, square

__all__ = ["PosedFrames", "read_camera", "read_pose_lens", "read_poses", "read_records", "read_tum"]

SUPPORTED = (
    "give a TUM .txt, a COLMAP model folder, a transforms.json, an OpenSfM reconstruction.json, a Record3D .r3d, "
    "a Polycam folder or an .npy of camera-to-world matrices"
)


def read_poses(
    path: str | Path,
    frame_timestamps_s: Array,
    frame_indices: Sequence[int] | NDArray[np.integer[Any]],
    *,
    source_frame_count: int | None = None,
    frame_names: Sequence[str] | None = None,
    convention: Sequence[str] = (),
) -> PosedFrames:
    """Poses of the clip's frames, from any of the formats above.

    frame_timestamps_s, frame_indices: (N,), of the frames in use; source_frame_count: frames of the whole source, if
    known; frame_names: file names of the frames in use, where the source is a folder of images; convention: words of
    `convention.WORDS` where the file means something else than its format says.
    Raises InputError when the file is missing, unknown or damaged, matches no frame, or holds no rigid matrices.
    """
    names = tuple(frame_names) if frame_names is not None else None
    clip = ClipFrames(np.asarray(frame_timestamps_s, float), np.asarray(frame_indices), source_frame_count, names)
    return read_records(path).told(convention).of(clip)


def read_pose_lens(path: str | Path) -> Lens | None:
    """The lens that a pose file states and frames must be undistorted from; None when it states none, or is missing."""
    path = Path(path)
    if not path.exists() or path.suffix.lower() in (".npy", ".tum") or (path.suffix == ".txt" and not _in_model(path)):
        return None
    return read_records(path).lens


def read_records(path: str | Path) -> PoseRecords:
    """All poses of a file; InputError when it is missing, unknown or damaged."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such pose file; {SUPPORTED}")
    if path.is_dir():
        return _from_folder(path)
    match path.suffix.lower():
        case ".npy":
            return _from_npy(path)
        case ".r3d":
            return read_record3d(path)
        case ".json":
            return _from_json(path)
    if is_record3d(path):
        return read_record3d(path)
    if _in_model(path):
        return _from_folder(path.parent)
    if path.suffix.lower() in (".txt", ".tum"):
        times_s, T = _tum_rows(path)
        return PoseRecords(path, T, TUM, times_s=times_s)
    raise InputError(f"{path}: unknown kind of pose file; {SUPPORTED}")


def read_tum(path: str | Path) -> Trajectory:
    """A TUM trajectory as it stands; InputError when it is missing or damaged."""
    return Trajectory(*_tum_rows(Path(path)))


def _tum_rows(path: Path) -> tuple[Array, Array]:
    """Timestamps (M,), increasing, and T_world_camera (M, 4, 4)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.replace(",", " ").split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        table = np.array(rows, np.float64)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a TUM trajectory ({str(error).splitlines()[0]}); {SUPPORTED}") from error
    if table.ndim != 2 or table.shape[1] != 8:
        raise InputError(f"{path}: not a TUM trajectory: each line needs timestamp tx ty tz qx qy qz qw")
    table = table[np.argsort(table[:, 0], kind="stable")]
    if not np.all(np.diff(table[:, 0]) > 0):
        raise InputError(f"{path}: a timestamp is NaN or occurs twice: keep one line each")
    return table[:, 0], poses_from_quaternions(path, table[:, 4:], table[:, 1:4])


def _in_model(path: Path) -> bool:
    """Whether a file is one of a COLMAP model's."""
    return path.name.split(".")[0] in ("cameras", "images") and find_model(path.parent) is not None


def _from_folder(folder: Path) -> PoseRecords:
    model_folder = find_model(folder)
    if model_folder is not None:
        model = read_model(model_folder)
        return PoseRecords(
            model_folder, model.T_world_camera, COLMAP, model.names, camera=model.camera, lens=model.lens
        )
    for name in ("transforms.json", "reconstruction.json"):
        if (folder / name).is_file():
            return _from_json(folder / name)
    if (folder / "metadata").is_file() and is_record3d(folder / "metadata"):
        return read_record3d(folder / "metadata")
    if cameras := polycam_cameras(folder):
        return read_polycam(cameras)
    raise InputError(f"{folder}: holds neither a COLMAP model (cameras.txt or .bin) nor transforms.json; {SUPPORTED}")


def _from_json(path: Path) -> PoseRecords:
    """nerfstudio's, OpenSfM's or Record3D's JSON, or one camera of Polycam's, by what it holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a transforms.json ({error!r}); {SUPPORTED}") from error
    if isinstance(content, list):
        return read_opensfm_poses(path, content)
    if isinstance(content, dict) and "poses" in content and "frames" not in content:
        return read_record3d(path)
    if isinstance(content, dict) and "t_00" in content:
        return read_polycam(path.parent)
    return read_transforms(path, content)


def _from_npy(path: Path) -> PoseRecords:
    try:
        T = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(
            f"{path}: not a numeric .npy file ({str(error).splitlines()[0]}); save it with numpy.save"
        ) from error
    if T.ndim != 3 or T.shape[1:] not in ((4, 4), (3, 4)):
        raise InputError(f"{path}: poses must be (N, 4, 4) or (N, 3, 4) camera-to-world matrices, got {T.shape}")
    if not np.isfinite(T[:, :3]).any():
        raise InputError(f"{path}: every pose is NaN; {SUPPORTED}")
    return PoseRecords(path, square(T), OPENCV)
