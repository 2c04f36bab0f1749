"""One run in another format: `marigold3d export`. The run is read, never changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import export_frames as frames
from . import export_scene as scene
from .atomic import output_error, writable_folder
from .errors import InputError, OutputError, UsageError
from .export.depth_maps import write_depth_exr, write_depth_npz, write_depth_png, write_encoding
from .export.e57 import write_e57
from .export.formats import FORMATS
from .export.glb import write_glb, write_mesh_glb
from .export.mesh_ply import write_mesh_ply
from .export.meshes import write_las
from .export.obj import write_mesh_obj, write_obj
from .export.ply import write_ply
from .export.trajectories import write_poses_npy, write_tum
from .progress import Progress, Steps
from .progress import run as drive
from .store import Run
from .types import PointCloud, TriangleMesh

Writer = Callable[[Run, Path, bool], Steps[None]]


def export_run(
    run: Run,
    form: str,
    output: Path,
    *,
    overwrite: bool = False,
    images: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Write `run` as `form` (see `export.formats`) to `output`: a file, or a folder for formats of many files.

    images: with the clip's frames, for the formats that can have them. Raises UsageError for an unknown format or an
    output name that does not fit it, OutputError when `output` exists and `overwrite` is off, InputError when the run
    is not finished or lacks what is asked for.
    """
    drive(export_steps(run, form, output, overwrite=overwrite, images=images), on_progress)


def export_steps(run: Run, form: str, output: Path, *, overwrite: bool = False, images: bool = False) -> Steps[None]:
    """`export_run` as a generator of Progress. A new folder appears whole or not at all."""
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}: use one of {', '.join(FORMATS)}")
    if images and not FORMATS[form].images:
        known = ", ".join(name for name, entry in FORMATS.items() if entry.images)
        raise UsageError(f"the format {form} has no place for images: it is one of {known} that has")
    _check_output(run, form, output)
    places = [output, *(scene.beside(output) if form == "nerfstudio" and images else ())]
    for place in places:
        _check_place(run, place, overwrite)
    if not run.finished:
        raise InputError(f"{run.path} is not finished: run `marigold3d video` again to resume it")
    if not FORMATS[form].is_folder:
        yield from _WRITERS[form](run, output, images)
        return
    with _staged(output) as folder:
        yield from _WRITERS[form](run, folder, images)


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends well; one that exists is written into."""
    if folder.exists():
        yield folder
        return
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.rename(folder)
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_output(run: Run, form: str, output: Path) -> None:
    """Whether the name suits the format, and leaves the run alone."""
    suffixes = FORMATS[form].suffixes
    if suffixes and output.suffix.lower() not in suffixes:
        raise UsageError(f"{output}: choose a name that ends in {', '.join(suffixes)}")
    if output.resolve().is_relative_to(run.path.resolve()):
        raise UsageError(f"{output} lies in the run, which exports leave as it is: choose another place")
    if output.exists() and output.is_dir() != FORMATS[form].is_folder:
        kind = "a folder" if output.is_dir() else "a file"
        raise OutputError(f"{output} is {kind}, which the format {form} cannot replace: choose another name")


def _check_place(run: Run, place: Path, overwrite: bool) -> None:
    """Nothing that is there may be lost, and the clip never."""
    if not place.exists():
        return
    clip = str(run.manifest.get("clip") or "")
    if clip and Path(clip).resolve().is_relative_to(place.resolve()):
        raise UsageError(f"{place} is or holds the run's clip, which exports leave as it is: choose another place")
    if not overwrite:
        raise OutputError(f"{place} exists already: pass --overwrite or choose another name")


def _silent(write: Callable[[Run, Path], object]) -> Writer:
    """A writer that is done in one go."""

    def steps(run: Run, path: Path, images: bool) -> Steps[None]:
        del images
        write(run, path)
        yield from ()

    return steps


def _of_cloud(write: Callable[[Path, PointCloud], None]) -> Writer:
    return _silent(lambda run, path: write(path, scene.cloud_of(run)))


def _of_mesh(write: Callable[[Path, TriangleMesh], None]) -> Writer:
    return _silent(lambda run, path: write(path, run.mesh()))


def _depth_maps(form: str, write: Callable[[Path, Run, int], Any]) -> Writer:
    """A file a frame."""

    def steps(run: Run, folder: Path, images: bool) -> Steps[None]:
        del images
        if not (indices := run.frame_indices):
            raise InputError(f"{run.path} has no depth maps: run `marigold3d video` again with --overwrite")
        writable_folder(folder)
        if form == "png":
            write_encoding(folder / "encoding.json", run.encoding())
        for done, index in enumerate(indices, start=1):
            write(folder / f"{index:06d}.{form}", run, index)
            yield Progress("files", done, len(indices))

    return steps


_WRITERS: dict[str, Writer] = {
    "ply": _of_cloud(write_ply),
    "glb": _of_cloud(write_glb),
    "obj": _of_cloud(write_obj),
    "las": _of_cloud(write_las),
    "laz": _of_cloud(write_las),
    "e57": _of_cloud(write_e57),
    "ply-mesh": _of_mesh(write_mesh_ply),
    "glb-mesh": _of_mesh(write_mesh_glb),
    "obj-mesh": _of_mesh(write_mesh_obj),
    "tum": _silent(lambda run, path: write_tum(path, scene.path_of(run), scene.units_of(run))),
    "npy": _silent(lambda run, path: write_poses_npy(path, scene.path_of(run))),
    "nerfstudio": scene.nerfstudio,
    "colmap": scene.colmap,
    "colmap-bin": scene.colmap_binary,
    "opensfm": scene.opensfm,
    "3dgs": scene.gaussian_splatting,
    "video": frames.depth_video,
    "rerun": frames.rerun,
    "viser": frames.viser,
    "exr": _depth_maps("exr", lambda path, run, i: write_depth_exr(path, run.depth(i), scene.units_of(run))),
    "png": _depth_maps("png", lambda path, run, i: write_depth_png(path, run.depth(i, sigma=False), run.encoding())),
    "npz": _depth_maps("npz", lambda path, run, i: write_depth_npz(path, run.depth(i), scene.units_of(run))),
}
