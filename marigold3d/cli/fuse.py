"""`marigold3d fuse`: a finished run is fused anew."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .options import Json, Mesh, Quiet, RunFolder, Triangles, print_json


class MaskScope(StrEnum):
    frame = "frame"
    pixels = "pixels"
    surface = "surface"


def fuse(
    run: RunFolder,
    voxel: Annotated[float | None, typer.Option(help="Voxel size, scene units.")] = None,
    max_depth: Annotated[float | None, typer.Option(help="Drop what is farther, scene units.")] = None,
    consistency: Annotated[
        float | None, typer.Option(help="Relative depth difference at which views still agree.")
    ] = None,
    min_observations: Annotated[int | None, typer.Option(help="Frames that must have seen a point.")] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Leave out what is not zero in FOLDER/NNNNNN.png, by source frame, any size."),
    ] = None,
    mask_scope: Annotated[
        MaskScope,
        typer.Option(help="What a mask means: its frame's pixels, the same pixels of all frames, or what they show."),
    ] = MaskScope.frame,
    mesh: Mesh = False,
    triangles: Triangles = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the last masks back.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fuse a finished run's depth maps again: with other settings, without what masks exclude, or as a mesh.

    Settings and masks given before stay; depth is not touched. With --mesh alone the cloud stays, too.
    """
    from dataclasses import replace

    from ..edits import Exclusion, exclude, fusion_settings, read_masks, refuse
    from ..edits import undo as take_back
    from ..meshing import mesh_run
    from ..progress import run as drive
    from ..store import Run
    from ..terminal import progress_bars, report_lines

    options = {
        "voxel": voxel,
        "max_depth": max_depth,
        "consistency_ratio": consistency,
        "min_observations": min_observations,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if undo and (given or masks is not None):
        raise UsageError("--undo takes the last masks back and goes with no other setting: give it alone")
    if masks is None and mask_scope is not MaskScope.frame:
        raise UsageError("--mask-scope says what masks mean: give --masks FOLDER too")
    if triangles is not None and not mesh:
        raise UsageError("--triangles says how large the mesh may be: give --mesh too")
    opened = Run.open(run)
    had_mesh, mesh_alone = opened.has_mesh, mesh and not (given or undo or masks is not None)
    config = replace(fusion_settings(opened), **given) if given else None  # type: ignore[arg-type]
    if undo:
        steps = take_back(opened)
    elif masks is not None:
        steps = exclude(opened, Exclusion(read_masks(masks, opened), mask_scope.value), config)
    else:
        steps = refuse(opened, config)
    with progress_bars(quiet) as on_progress:
        if not mesh_alone:
            opened = drive(steps, on_progress)
        if mesh:
            opened = drive(mesh_run(opened, triangles), on_progress)
    if had_mesh and not mesh:
        print("mesh.ply was of the former cloud and is removed: --mesh makes it again", file=sys.stderr)
    if as_json:
        edits = opened.manifest.get("edits", [])
        print_json({"run": str(run), "units": opened.manifest["units"], "edits": edits, **opened.manifest["report"]})
    else:
        print(report_lines(opened), file=sys.stderr)
