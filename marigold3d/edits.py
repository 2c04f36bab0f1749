"""Edits of a finished run: what a person paints is left out of its cloud, which is fused again from the depth maps.

Nothing but the cloud changes, and every edit can be taken back. Each change is whole or has not happened: an error, a
full disk or a closed generator leaves run, cloud and list of edits as they were. The clouds of the last few states are
kept in RUN/edits, so that going back and forth takes no time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from threadpoolctl import threadpool_limits

from .atomic import atomic_path, writable_folder
from .config import FusionConfig, RunConfig
from .errors import GeometryError, InputError, UsageError
from .exclusions import Exclusion, Scope, edits, edits_folder, read_exclusions, resized
from .export.ply import write_ply
from .finished import clip_of, fused_frames, require_scene, scene_colors, scene_views
from .fusion.fuse import fuse
from .progress import Steps
from .stages import digest, fingerprint
from .store import Run
from .types import BoolImage, PointCloud

__all__ = ["Exclusion", "Scope", "edits", "exclude", "fusion_settings", "read_masks", "refuse", "undo"]

CLOUDS_KEPT = 4  # states that can be gone back to without fusing


def exclude(run: Run, exclusion: Exclusion, config: FusionConfig | None = None) -> Steps[Run]:
    """Leave pixels out and fuse again, with other settings if they are given.

    Raises UsageError for masks that do not fit the run, InputError when its clip is gone, GeometryError when nothing is
    left.
    """
    _require_masks_of(run, exclusion)
    before = edits(run)
    number = 1 + max((int(Path(e["file"]).stem) for e in before), default=0)
    entry = exclusion.entry(number, fingerprint(clip_of(run).info.path))
    return (yield from _changed(run, [*before, entry], config or fusion_settings(run), added=exclusion))


def undo(run: Run) -> Steps[Run]:
    """Take the last edit back. UsageError when there is none."""
    require_scene(run)
    before = edits(run)
    if not before:
        raise UsageError(f"{run.path} has no edits to take back")
    return (yield from _changed(run, before[:-1], fusion_settings(run)))


def refuse(run: Run, config: FusionConfig | None = None) -> Steps[Run]:
    """Fuse again with the edits that there are; config: other settings, which the run keeps. Errors as of `exclude`."""
    require_scene(run)
    return (yield from _changed(run, edits(run), config or fusion_settings(run), afresh=True))


def fusion_settings(run: Run) -> FusionConfig:
    """How the run's cloud was fused."""
    return RunConfig.from_dict(run.manifest.get("settings", {})).fusion


def read_masks(folder: Path, run: Run) -> dict[int, BoolImage]:
    """Masks NNNNNN.png of any size by source frame, at the size of the run's depth maps; what is not zero is painted.

    Raises InputError when there are none or one cannot be read.
    """
    camera = run.camera()
    files = sorted(folder.glob("*.png"))
    if not files or not all(f.stem.isdecimal() for f in files):
        found = next((f.name for f in files if not f.stem.isdecimal()), "no PNG")
        raise InputError(f"{folder}: masks are named after their source frames, 000042.png; there is {found}")
    return {int(file.stem): resized(_read_mask(file), camera.width, camera.height) for file in files}


def _read_mask(file: Path) -> NDArray[Any]:
    """(h, w) a grey value a pixel; of colours the brightest counts, and what is transparent does not."""
    try:
        with Image.open(file) as image:
            values = np.asarray(image.convert("RGBA") if image.mode in ("P", "LA", "PA", "RGBA") else image)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{file}: not a readable mask ({str(error).splitlines()[0]}); write it again") from error
    if values.ndim == 3 and values.shape[2] == 4:
        values = values[..., :3] * (values[..., 3:] > 0)
    return values.max(2) if values.ndim == 3 else values


# -- what can be edited -----------------------------------------------------------------------------------------------


def _require_masks_of(run: Run, exclusion: Exclusion) -> None:
    require_scene(run)
    camera, frames = run.camera(), list(exclusion.masks)
    if exclusion.shape != (camera.height, camera.width):
        height, width = exclusion.shape
        raise UsageError(f"the masks are {width}x{height}, the depth maps {camera.width}x{camera.height}: resize them")
    known = set(run.frame_indices)
    strange = [f for f in frames if f not in known]
    if strange and exclusion.scope != "pixels":
        raise UsageError(f"the run has no depth of source frame {strange[0]}; it has {_listed(sorted(known))}")
    fused = fused_frames(run)
    if exclusion.scope == "frame" and not set(frames) & set(fused):
        raise UsageError(
            f"frame {frames[0]} is not among those that are fused ({_listed(fused)}): paint one of them, or give the "
            'masks the scope "surface"'
        )


def _listed(frames: Sequence[int]) -> str:
    return ", ".join(map(str, frames)) if len(frames) < 7 else f"{', '.join(map(str, frames[:5]))} ... {frames[-1]}"


# -- fusing -----------------------------------------------------------------------------------------------------------


def _fused(run: Run, exclusions: Sequence[Exclusion], config: FusionConfig) -> Steps[tuple[PointCloud, dict[str, Any]]]:
    """The cloud of a run's depth maps, and its report."""
    edited = scene_views(run, exclusions)
    try:
        with threadpool_limits(1, "blas"):
            cloud, report = yield from fuse(edited, scene_colors(run, edited.indices), config)
    except GeometryError as error:
        if not exclusions:
            raise
        raise GeometryError(f"nothing is left of the scene outside the masks: paint less ({error})") from None
    return cloud, report.as_dict()


# -- changing the run -------------------------------------------------------------------------------------------------


def _changed(
    run: Run,
    entries: list[dict[str, Any]],
    config: FusionConfig,
    added: Exclusion | None = None,
    afresh: bool = False,
) -> Steps[Run]:
    """The run with these edits and settings; `added` are the masks of the last edit, which are not stored yet.

    A cloud kept of that state is taken, unless it is to be fused `afresh`.
    """
    key, kept = _state(run, entries, config), edits_folder(run)
    if not afresh and (kept / f"{key}.ply").is_file() and (kept / f"{key}.json").is_file():
        report = json.loads((kept / f"{key}.json").read_text())
        _commit(run, entries, config, added, lambda path: _copy(kept / f"{key}.ply", path), report)
    else:
        stored = read_exclusions(run, entries if added is None else entries[:-1])
        cloud, report = yield from _fused(run, stored if added is None else [*stored, added], config)
        _commit(run, entries, config, added, lambda path: write_ply(path, cloud), report)
    return run


def _state(run: Run, entries: Sequence[dict[str, Any]], config: FusionConfig) -> str:
    """Digest of all that a cloud depends on but the depth itself: with new depth, the kept clouds are removed."""
    files = [run.path / "trajectory.txt", run.path / "camera.json", run.path / "depth" / "encoding.json"]
    contents = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()]
    return digest([e["digest"] for e in entries], asdict(config), run.manifest["units"], contents, fused_frames(run))


def _commit(
    run: Run,
    entries: list[dict[str, Any]],
    config: FusionConfig,
    added: Exclusion | None,
    write_cloud: Callable[[Path], None],
    report: dict[str, Any],
) -> None:
    """Put the new cloud, masks and manifest in place of the old ones, or leave everything as it was."""
    folder, cloud = writable_folder(edits_folder(run)), run.path / "cloud.ply"
    fresh, before = folder / ".fresh.ply", folder / ".before.ply"
    was, manifest, dropped = _state(run, edits(run), fusion_settings(run)), deepcopy(run.manifest), edits(run)
    settings = manifest.get("settings", {})
    changed: dict[str, Any] = {
        "edits": entries,
        "settings": {**settings, "fuse": True, "fusion": asdict(config)},
        "report": {**{k: v for k, v in manifest.get("report", {}).items() if k != "mesh"}, "fusion": report},
    }
    with ExitStack() as always, ExitStack() as on_failure:
        for file in (fresh, before):
            always.callback(file.unlink, missing_ok=True)
        on_failure.callback(_remove_if_empty, folder)
        if added is not None:
            on_failure.callback((folder / entries[-1]["file"]).unlink, missing_ok=True)
            added.write(folder / entries[-1]["file"])
        write_cloud(fresh)
        if cloud.is_file():
            _copy(cloud, before)
            on_failure.callback(os.replace, before, cloud)
        else:
            on_failure.callback(cloud.unlink, missing_ok=True)
        os.replace(fresh, cloud)
        on_failure.callback(run.manifest.update, manifest)
        run.update(**changed)
        on_failure.pop_all()
        (run.path / "mesh.ply").unlink(missing_ok=True)  # it was of the former cloud
        if before.is_file() and was != _state(run, entries, config):
            _keep(folder, was, before, manifest)
    for entry in dropped:
        if entry["file"] not in {e["file"] for e in entries}:
            (folder / entry["file"]).unlink(missing_ok=True)
    _thin_out(folder)


def _keep(folder: Path, state: str, cloud: Path, manifest: dict[str, Any]) -> None:
    """Keep the cloud of a state that was left, with its report."""
    report = manifest.get("report", {}).get("fusion")
    if report:
        with atomic_path(folder / f"{state}.json") as temporary:
            temporary.write_text(json.dumps(report) + "\n")
        os.replace(cloud, folder / f"{state}.ply")


def _thin_out(folder: Path) -> None:
    """Of the kept clouds only the last few stay."""
    reports = sorted(folder.glob("*.json"), key=lambda f: f.stat().st_mtime_ns)
    for report in reports[:-CLOUDS_KEPT]:
        report.with_suffix(".ply").unlink(missing_ok=True)
        report.unlink()


def _copy(source: Path, target: Path) -> None:
    """`source` under a second name, without copying where the file system can: products are replaced, never changed."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def _remove_if_empty(folder: Path) -> None:
    if not any(f for f in folder.iterdir() if not f.name.startswith(".")):
        shutil.rmtree(folder, ignore_errors=True)
