"""Triangle meshes as PLY: binary little-endian, with normals and colours; comments state units and axes."""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

import numpy as np

from .. import __version__
from ..atomic import atomic_path
from ..errors import InputError
from ..types import TriangleMesh, Units
from .ply import PLY_NAMES

VERTEX = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")] + [(name, "u1") for name in ("red", "green", "blue")]
)
FACE = np.dtype([("count", "u1"), ("indices", "<i4", (3,))])


def write_mesh_ply(path: str | Path, mesh: TriangleMesh) -> None:
    """Write a mesh. OutputError when it cannot be."""
    vertices, faces = np.empty(len(mesh.vertices), VERTEX), np.empty(len(mesh.faces), FACE)
    for i in range(3):
        vertices["xyz"[i]] = mesh.vertices[:, i]
        vertices[("nx", "ny", "nz")[i]] = mesh.normals[:, i]
        vertices[("red", "green", "blue")[i]] = mesh.colors[:, i]
    faces["count"], faces["indices"] = 3, mesh.faces
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join([*_header(mesh), ""]).encode("ascii"))
        vertices.tofile(file)
        faces.tofile(file)


def _header(mesh: TriangleMesh) -> list[str]:
    return [
        "ply",
        "format binary_little_endian 1.0",
        f"comment marigold3d {__version__}",
        f"comment units {mesh.units}",
        "comment world frame of the camera poses; cameras are x right, y down, z forward",
        f"element vertex {len(mesh.vertices)}",
        *(f"property {PLY_NAMES[VERTEX[name].str]} {name}" for name in VERTEX.names or ()),
        f"element face {len(mesh.faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]


def read_mesh_ply(path: str | Path) -> TriangleMesh:
    """Read what `write_mesh_ply` wrote. InputError when it is missing, damaged, or of another program."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: no readable mesh ({error.strerror})") from error
    head, _, body = data.partition(b"end_header\n")
    lines = head.decode("latin-1").splitlines()
    words = dict(line.rsplit(" ", 1) for line in lines if line.startswith(("element", "comment units")))
    try:
        counts = int(words["element vertex"]), int(words["element face"])
        units = cast(Units, words["comment units"] if words["comment units"] in get_args(Units) else "arbitrary")
        vertices = np.frombuffer(body, VERTEX, counts[0])
        faces = np.frombuffer(body, FACE, counts[1], counts[0] * VERTEX.itemsize)
        mesh = TriangleMesh(
            np.stack([vertices[n] for n in ("x", "y", "z")], 1),
            faces["indices"].copy(),
            np.stack([vertices[n] for n in ("nx", "ny", "nz")], 1),
            np.stack([vertices[n] for n in ("red", "green", "blue")], 1),
            units,
        )
        if lines != _header(mesh)[:2] + lines[2:3] + _header(mesh)[3:-1]:  # of any version
            raise ValueError("its header is another program's")
    except (KeyError, ValueError, InputError) as error:
        raise InputError(f"{path}: not a mesh of marigold3d, or damaged ({error}); make it again") from error
    return mesh
