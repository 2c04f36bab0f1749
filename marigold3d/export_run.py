"""One run in another format: `marigold3d export`. The run is read, never changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .atomic import writable_folder
from .errors import InputError, OutputError, UsageError
from .export.depth_maps import write_depth_exr, write_depth_npz
from .export.meshes import write_glb, write_las
from .export.ply import write_ply
from .export.trajectories import image_names, write_colmap, write_poses_npy, write_transforms
from .types import Units

if TYPE_CHECKING:
    from .store import Run


def export_run(run: Run, form: str, output: Path, *, overwrite: bool = False) -> None:
    """Write `run` as `form` to `output`: a file for clouds and poses, a folder for depth maps and camera models.

    Raises UsageError for an unknown format, OutputError when `output` exists and `overwrite` is off, InputError when
    the run is not finished or has no cloud.
    """
    writer = _WRITERS.get(form)
    if writer is None:
        raise UsageError(f"unknown format {form!r}: use one of {', '.join(_WRITERS)}")
    if not run.finished:
        raise InputError(f"{run.path} is not finished: run `marigold3d video` again to resume it")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists already: pass --overwrite or choose another name")
    writer(run, output)


def _units(run: Run) -> Units:
    units: Units = run.manifest["units"]
    return units


def _depth_maps(run: Run, folder: Path, form: str) -> None:
    writable_folder(folder)
    write = write_depth_exr if form == "exr" else write_depth_npz
    for index in run.frame_indices:
        write(folder / f"{index:06d}.{form}", run.depth(index), _units(run))


def _colmap(run: Run, folder: Path) -> None:
    names = image_names(run.frame_indices)
    write_colmap(folder, run.trajectory(), run.camera(), names, _units(run), run.cloud())


def _nerfstudio(run: Run, path: Path) -> None:
    write_transforms(path, run.trajectory(), run.camera(), image_names(run.frame_indices), _units(run))


_WRITERS: dict[str, Callable[[Run, Path], None]] = {
    "ply": lambda run, path: write_ply(path, run.cloud()),
    "glb": lambda run, path: write_glb(path, run.cloud()),
    "las": lambda run, path: write_las(path, run.cloud()),
    "laz": lambda run, path: write_las(path, run.cloud()),
    "colmap": _colmap,
    "nerfstudio": _nerfstudio,
    "npy": lambda run, path: write_poses_npy(path, run.trajectory()),
    "exr": lambda run, path: _depth_maps(run, path, "exr"),
    "npz": lambda run, path: _depth_maps(run, path, "npz"),
}
