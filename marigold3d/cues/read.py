"""Known depths from any file a user has: one entry point that recognises the kind.

| file | what it is |
|---|---|
| folder of NNNNNN.png, .npy, .npz, .exr, or one such file@FRAME | depth maps: uint16 PNG mm, else m; EXR channel Z |
| table with u, v, depth (frame, sigma, id) | pixels with known depth |
| table with x, y, z (sigma); .ply, .las, .laz | points in the world of the camera poses |
| table with name, frame, u, v and x, y, z or latitude, longitude, altitude | surveyed control points |
| ground_control_points.json | the same, of OpenSfM |
| COLMAP model folder; OpenSfM reconstruction.json | another program's sparse model, in a scale of its own |

A table is a CSV with a header row or an NPZ of arrays. Frames are numbered from 0 in the source; u, v are pixels of the
clip's own frames, centres at +0.5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..align.sources import CueSource
from ..errors import InputError
from ..poses.colmap_files import find_model
from ..poses.colmap_points import read_observed_colmap
from ..poses.opensfm_files import read_opensfm
from ..types import Units
from .clip_frames import NOT_USED, ClipFrames
from .control_files import CONTROL_COLUMNS, PLACES, json_control_points, table_control_points
from .depth_files import DEPTH_SUFFIXES
from .models import model_cues
from .pixels import COLUMNS, pixel_cues
from .sensor import read_sensor_folder, read_sensor_map
from .table import TABLE_SUFFIXES, read_table
from .tally import Tally
from .world_points import CLOUD_SUFFIXES, cloud_points, table_points

SUPPORTED = (
    "give a folder of depth maps named by frame (000042.png), a table with u,v,depth,frame or x,y,z, a .ply or .las "
    "cloud, control points, or a COLMAP or OpenSfM model"
)


class CountedSource(CueSource, Protocol):
    """A `CueSource` that knows what its file held and what of that is not used."""

    @property
    def tally(self) -> Tally: ...


def read_cues(spec: str, clip: ClipFrames, *, sigma: float | None = None, units: Units | None = None) -> CountedSource:
    """Cues of the clip from a path, or PATH@FRAME for a file that holds one frame (FRAME numbered in the source).

    sigma: standard deviation as a share of the depth, for cues whose file states none; by default 1 % + 5 mm in metres,
    2 % otherwise. units: of the file's lengths; by default "m", and "arbitrary" for another program's model.
    Raises InputError when the file is missing, unknown, damaged, or no cue of it belongs to a frame in use.
    """
    if sigma is not None and not (np.isfinite(sigma) and sigma > 0):
        raise InputError(f"the standard deviation of cues must be a positive share of the depth, got {sigma}")
    path, frame = split_spec(spec)
    if not path.exists():
        raise InputError(f"{path}: no such file of known depths; {SUPPORTED}")
    if path.is_dir():
        return _from_folder(path, clip, sigma, units)
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty; write or copy it again")
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _from_json(path, clip, sigma, units)
    if suffix in CLOUD_SUFFIXES:
        return cloud_points(path, clip, units, sigma)
    if path.name.split(".")[0] in ("cameras", "images", "points3D") and find_model(path.parent):
        return _from_folder(path.parent, clip, sigma, units)
    if suffix in DEPTH_SUFFIXES and not (suffix == ".npz" and _is_table(path)):
        return read_sensor_map(path, _one_position(path, frame, clip), clip, units or "m", sigma)
    if suffix in TABLE_SUFFIXES:
        return _from_table(path, frame, clip, sigma, units)
    raise InputError(f"{path}: unknown kind of file; {SUPPORTED}")


def split_spec(spec: str) -> tuple[Path, int | None]:
    """Path and, after a last @, frame number; a path that exists as it stands is not split."""
    path, at, frame = spec.rpartition("@")
    if at and frame.isdecimal() and not Path(spec).exists():
        return Path(path), int(frame)
    return Path(spec), None


def _one_position(path: Path, frame: int | None, clip: ClipFrames) -> int:
    """Position of the frame that a file of one frame belongs to."""
    position = _position(path, frame, clip)
    if position is None:
        raise InputError(
            f"{path}: a depth map of which frame? Write {path.name}@FRAME, with the frame's number in the source"
        )
    return position


def _position(path: Path, frame: int | None, clip: ClipFrames) -> int | None:
    """Position of `frame`, or of a clip's only frame; None when that is open."""
    if frame is None:
        return 0 if len(clip) == 1 else None
    (position,) = clip.positions([frame])
    if position == NOT_USED:
        raise InputError(f"{path}@{frame}: frame {frame} is not in use ({clip.range_text()}); name one that is")
    return int(position)


def _from_folder(folder: Path, clip: ClipFrames, sigma: float | None, units: Units | None) -> CountedSource:
    model = find_model(folder)
    if model is not None:
        return model_cues(folder, read_observed_colmap(model), clip, units or "arbitrary", sigma)
    if (folder / "reconstruction.json").is_file():
        return _from_json(folder / "reconstruction.json", clip, sigma, units)
    if any(f.suffix.lower() in DEPTH_SUFFIXES for f in folder.iterdir()):
        return read_sensor_folder(folder, clip, units or "m", sigma)
    raise InputError(f"{folder}: holds neither depth maps nor a COLMAP or OpenSfM model; {SUPPORTED}")


def _from_json(path: Path, clip: ClipFrames, sigma: float | None, units: Units | None) -> CountedSource:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON ({str(error).splitlines()[0]}); write it again") from error
    if isinstance(content, list) and content and isinstance(content[0], dict) and "shots" in content[0]:
        return model_cues(path, read_opensfm(path), clip, units or "arbitrary", sigma)
    if isinstance(content, dict) and isinstance(content.get("points"), list):
        return json_control_points(path, content, clip, sigma)
    raise InputError(f"{path}: neither a reconstruction nor control points of OpenSfM; {SUPPORTED}")


def _is_table(path: Path) -> bool:
    """Whether an NPZ holds columns of a table; what cannot be read is left for the reader of depth maps to name."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return "depth" not in arrays or {"u", "v"} <= set(arrays)
    except Exception:  # a damaged archive fails in many ways, and is read again with a message of its own
        return False


def _from_table(
    path: Path, frame: int | None, clip: ClipFrames, sigma: float | None, units: Units | None
) -> CountedSource:
    table = read_table(path)
    if CONTROL_COLUMNS in table and any(place in table for place in PLACES):
        return table_control_points(table, clip, sigma)
    if COLUMNS in table:
        return pixel_cues(table, clip, units or "m", sigma, position=_position(path, frame, clip))
    if "x y z" in table:
        return table_points(table, clip, units or "m", sigma)
    raise InputError(
        f"{path}: its columns are {', '.join(table.columns)}; it needs u,v,depth,frame (pixels), x,y,z (points) or "
        "name,x,y,z,frame,u,v (control points)"
    )
