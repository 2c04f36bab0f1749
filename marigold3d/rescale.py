"""A finished run brought to metres by known lengths in about a second: of its depth maps only the encoding changes.

A later `realign` comes to the same scene: it starts from the cache, which stays in the units before, and finds all
lengths among the settings.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .atomic import atomic_path, output_error
from .cues import Measurement, ScaleEstimate, parse_measure, scale_from_measures
from .cues.measure import MeasuredLength
from .errors import InputError
from .exclusions import tidy
from .export.depth_maps import DepthEncoding, read_encoding, write_encoding
from .export.mesh_ply import write_mesh_ply
from .export.ply import write_ply
from .export.trajectories import write_tum
from .lengths import length_warnings, lengths_report, merged, report_in_metres, without_length_warnings
from .picking import clip_frames
from .store import Run
from .types import Units

MAPS_KEPT = 8  # depth maps in memory
ENCODED: tuple[Literal["depth", "sigma"], ...] = ("depth", "sigma")  # folders of maps with an encoding


@dataclass(frozen=True, eq=False)
class Rescaled:
    """The run, now in metres; how its scale was found, from what the scene was before; and what changed, for people."""

    run: Run
    estimate: ScaleEstimate
    lines: tuple[str, ...]


def rescale(run: Run, measures: Sequence[Measurement]) -> Rescaled:
    """Bring a finished run to the scale that known lengths give it, with those given before: `run` is changed.

    A length between the same ends as an earlier one replaces it. Raises InputError for a run that is not finished, and
    what `scale_from_measures` raises. An error on the way, a full disk too, leaves the run as it was.
    """
    if not run.finished:
        raise InputError(f"{run.path} is not finished: run `marigold3d video` again, which resumes it")
    known = known_lengths(run, measures)
    estimate = _estimate(run, known)
    manifest = _manifest(run, known, estimate)
    lines = tuple(_lines(run, manifest, estimate))
    fresh = run.path / ".rescale.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _write_products(run, fresh / "new", estimate.factor)
        _swap(run, fresh / "new", fresh / "old", manifest)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    tidy(run)  # clouds kept of the scene as large as it was
    return Rescaled(run, estimate, lines)


def known_lengths(run: Run, new: Sequence[Measurement]) -> list[Measurement]:
    """All known lengths of a run: those given before, and new ones."""
    before = run.manifest.get("settings", {}).get("align", {}).get("measures", ())
    return merged([parse_measure(text) for text in before], new)


def _estimate(run: Run, known: Sequence[Measurement]) -> ScaleEstimate:
    clip = clip_frames(run)
    posed = (run.path / "trajectory.txt").is_file()
    depth = lru_cache(MAPS_KEPT)(run.depth)
    return scale_from_measures(
        known, lambda p: depth(int(clip.indices[p])), clip, run.trajectory().T_world_camera if posed else None
    )


# -- what changes -----------------------------------------------------------------------------------------------------


def _manifest(run: Run, known: Sequence[Measurement], estimate: ScaleEstimate) -> dict[str, Any]:
    """Manifest entries of the run at its new scale."""
    old, factor = deepcopy(run.manifest), estimate.factor
    settings, report = old.get("settings", {}), old.get("report", {})
    lengths = report.get("lengths", {})
    before = float(lengths.get("factor", 1.0))
    units: Units = lengths.get("units_before", "arbitrary") if lengths else old.get("units", "arbitrary")
    followed = report.get("alignment", {}).get("units") == old.get("units")
    fusion = settings.get("fusion", {})
    given = {name: fusion[name] * factor for name in ("voxel", "max_depth") if fusion.get(name) is not None}
    warnings = [*without_length_warnings(report.get("warnings", [])), *length_warnings(estimate, units, before)]
    return {
        "units": "m",
        "settings": {
            **settings,
            "align": {**settings.get("align", {}), "measures": [str(m) for m in known]},
            "fusion": {**fusion, **given},
        },
        "report": {
            **report_in_metres(report, factor, 1.0 if followed else before),
            "lengths": lengths_report(estimate, units, before),
            "warnings": warnings,
        },
    }


def _write_products(run: Run, folder: Path, factor: float) -> None:
    """The files that say how large the scene is, in `folder`; the 16-bit maps need none of their own."""
    for what in ENCODED:
        file = Path(what) / "encoding.json"
        if (run.path / file).is_file():
            e = read_encoding(run.path / file)
            write_encoding(folder / file, DepthEncoding(e.scale * factor, e.offset * factor, "m"), what)
    if (run.path / "trajectory.txt").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_tum(folder / "trajectory.txt", run.trajectory().scaled(factor), "m")
    if run.has_cloud:
        cloud, f = run.cloud(), np.float32(factor)
        write_ply(folder / "cloud.ply", replace(cloud, points=cloud.points * f, sigma=cloud.sigma * f, units="m"))
    if run.has_mesh:
        mesh = run.mesh()
        write_mesh_ply(folder / "mesh.ply", replace(mesh, vertices=mesh.vertices * np.float32(factor), units="m"))
    entry = {**json.loads((run.path / "camera.json").read_text()), "units": "m"}
    with atomic_path(folder / "camera.json") as temporary:
        temporary.write_text(json.dumps(entry, indent=2) + "\n")


# -- changing it ------------------------------------------------------------------------------------------------------


def _swap(run: Run, new: Path, old: Path, manifest: Mapping[str, Any]) -> None:
    """Put the files in `new` and the manifest in place, or, after an error, leave everything as it was."""
    with ExitStack() as on_failure:
        for file in sorted(f for f in new.rglob("*") if f.is_file()):
            product, kept = run.path / file.relative_to(new), old / file.relative_to(new)
            with _saying(product):
                _second_name(product, kept)
                on_failure.callback(os.replace, kept, product)
                os.replace(file, product)
        on_failure.callback(run.manifest.update, deepcopy(run.manifest))
        run.update(**manifest)
        on_failure.pop_all()


def _second_name(file: Path, name: Path) -> None:
    """`file` under another name too, without copying where the file system can: products are replaced, not changed."""
    name.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


@contextmanager
def _saying(path: Path) -> Iterator[None]:
    """An OSError as the OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


# -- in words ---------------------------------------------------------------------------------------------------------


def _lines(run: Run, manifest: Mapping[str, Any], estimate: ScaleEstimate) -> Iterator[str]:
    """What changes, for people; `run` is as it was."""
    factor = estimate.factor
    sure = f"+- {100 * estimate.sigma / estimate.factor:.2g} %"
    metric = run.manifest.get("units") == "m"
    yield f"the scene is {factor:.4g} times as large {sure}" if metric else f"1 unit is {factor:.4g} m {sure}"
    unit = "m" if metric else "units"
    if (run.path / "trajectory.txt").is_file():
        path = float(np.linalg.norm(np.diff(run.trajectory().centres, axis=0), axis=1).sum())
        if path > 0:
            yield f"camera path {path:.3g} {unit} -> {path * factor:.3g} m"
    if fusion := manifest["report"].get("fusion"):
        yield f"voxel {fusion['voxel'] / factor:.3g} {unit} -> {fusion['voxel']:.3g} m"
    for length in estimate.lengths:
        yield f"length {_said(length, unit)}"
    for length in estimate.rejected:
        yield f"left out, as the others contradict it: {_said(length, unit)}"


def _said(length: MeasuredLength, unit: str) -> str:
    m = length.measurement
    return f"{m}: {length.before:.4g} +- {length.sigma:.2g} {unit} -> {length.after:.4g} m (given {m.length_m:.4g} m)"
