"""Clouds and meshes as Wavefront OBJ; colours, 0 to 1, stand behind the coordinates, as MeshLab began it.

OBJ knows no units and no axes. Importers take y for up, so the scene is turned as for glTF; a comment says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..atomic import atomic_path
from ..errors import InputError
from ..types import Array, PointCloud, TriangleMesh, Units
from .glb import Y_DOWN_TO_Y_UP
from .needed import require_points
from .ply import CHUNK_POINTS

VERTEX = "v" + " %.9g" * 3 + " %.5g" * 3  # float32 and 8-bit colours come back to the bit
NORMAL = "vn" + " %.6g" * 3
FACE = "f %d//%d %d//%d %d//%d"


def write_obj(path: str | Path, cloud: PointCloud) -> None:
    """Write the points as vertices without faces. OutputError when the file cannot be written."""
    require_points(len(cloud))
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write(_header(cloud.units))
        _write_vertices(file, cloud.points, cloud.colors)


def write_mesh_obj(path: str | Path, mesh: TriangleMesh) -> None:
    """Write vertices, colours, normals and faces. OutputError when the file cannot be written."""
    if not len(mesh):
        raise InputError("the mesh is empty: there is nothing to export")
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write(_header(mesh.units))
        _write_vertices(file, mesh.vertices, mesh.colors)
        np.savetxt(file, mesh.normals * Y_DOWN_TO_Y_UP, NORMAL)
        np.savetxt(file, (mesh.faces + 1).repeat(2, axis=1), FACE)  # a corner: its vertex and that one's normal


def _header(units: Units) -> str:
    return (
        f"# marigold3d {__version__}\n"
        f"# units {units}; x right, y up, z towards the viewer: half a turn about x from the camera poses' world\n"
    )


def _write_vertices(file: TextIO, points: Array, colors: NDArray[np.uint8]) -> None:
    for start in range(0, len(points), CHUNK_POINTS):
        part = slice(start, start + CHUNK_POINTS)
        np.savetxt(file, np.hstack([points[part] * Y_DOWN_TO_Y_UP, colors[part] / 255.0]), VERTEX)
