"""Clouds and meshes as binary glTF 2.0 (GLB), written piece by piece: the largest copy is a piece of one array.

glTF is y up with z towards the viewer, so the scene is turned half a turn about x. The material is unlit: it shows the
colours as they are, where glTF's default is a dark metal. The scene's extras state the units.

A mesh's colours are linear, as glTF has it. A cloud's are sRGB bytes: so other programs write and read points, and one
of them (trimesh, which reads them back here) would round linear ones to bytes and lose the dark tones.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..atomic import atomic_path
from ..errors import InputError, OutputError
from ..types import PointCloud, TriangleMesh, Units
from .needed import require_points
from .ply import CHUNK_POINTS

Y_DOWN_TO_Y_UP = np.array([1, -1, -1], np.float32)
POINTS, TRIANGLES = 0, 4  # glTF's primitive modes
UINT8, UINT32, FLOAT32 = 5121, 5125, 5126  # its component types
VERTICES, INDICES = 34962, 34963  # its buffer targets
LARGEST = 2**32 - 1  # bytes: the length of a GLB has 32 bits
_SHARE = np.arange(256) / 255
LINEAR = np.where(_SHARE <= 0.04045, _SHARE / 12.92, ((_SHARE + 0.055) / 1.055) ** 2.4).astype("<f4")
"""(256,) the light that an sRGB value stands for (IEC 61966-2-1)."""
MATERIAL = {
    "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},  # for viewers without the extension
    "extensions": {"KHR_materials_unlit": {}},
}


@dataclass(frozen=True)
class _Array:
    """An accessor: `rows` of an array, changed by `change` as they are written, as glTF's type and component."""

    rows: NDArray[Any]
    change: Callable[[NDArray[Any]], NDArray[Any]]
    row_bytes: int
    entry: dict[str, Any]
    target: int = VERTICES


def write_glb(path: str | Path, cloud: PointCloud) -> None:
    """Write the points with their colours. OutputError when the file cannot be written, or would exceed 4 GB."""
    require_points(len(cloud))
    _write(path, POINTS, _places(cloud.points) | _colors(cloud.colors), None, cloud.units)


def write_mesh_glb(path: str | Path, mesh: TriangleMesh) -> None:
    """Write vertices, normals, colours and faces; as `write_glb`."""
    if not len(mesh):
        raise InputError("the mesh is empty: there is nothing to export")
    normals = _Array(mesh.normals, _turned, 12, {"componentType": FLOAT32, "type": "VEC3"})
    attributes = _places(mesh.vertices) | {"NORMAL": normals} | _linear_colors(mesh.colors)
    entry = {"componentType": UINT32, "type": "SCALAR", "count": mesh.faces.size}
    faces = _Array(mesh.faces, lambda rows: rows.astype("<u4"), 12, entry, INDICES)
    _write(path, TRIANGLES, attributes, faces, mesh.units)


def _turned(rows: NDArray[Any]) -> NDArray[Any]:
    return (rows * Y_DOWN_TO_Y_UP).astype("<f4")


def _places(points: NDArray[np.float32]) -> dict[str, _Array]:
    corners = np.stack([points.min(0), points.max(0)]) * Y_DOWN_TO_Y_UP
    bounds = {"min": corners.min(0).tolist(), "max": corners.max(0).tolist()}
    return {"POSITION": _Array(points, _turned, 12, {"componentType": FLOAT32, "type": "VEC3", **bounds})}


def _colors(colors: NDArray[np.uint8]) -> dict[str, _Array]:
    """With an alpha of 255: rows must be a multiple of four bytes."""
    entry = {"componentType": UINT8, "type": "VEC4", "normalized": True}
    return {"COLOR_0": _Array(colors, lambda rows: np.pad(rows, ((0, 0), (0, 1)), constant_values=255), 4, entry)}


def _linear_colors(colors: NDArray[np.uint8]) -> dict[str, _Array]:
    return {"COLOR_0": _Array(colors, LINEAR.take, 12, {"componentType": FLOAT32, "type": "VEC3"})}


def _write(path: str | Path, mode: int, attributes: dict[str, _Array], faces: _Array | None, units: Units) -> None:
    arrays = [*attributes.values(), *([faces] if faces else [])]
    primitive: dict[str, Any] = {
        "mode": mode,
        "material": 0,
        "attributes": {name: i for i, name in enumerate(attributes)},
        **({"indices": len(attributes)} if faces else {}),
    }
    tree = json.dumps(_tree(primitive, arrays, units)).encode()
    tree += b" " * (-len(tree) % 4)
    body = sum(len(a.rows) * a.row_bytes for a in arrays)  # rows are multiples of four bytes, and so is the sum
    total = 12 + 8 + len(tree) + 8 + body
    if total > LARGEST:
        raise OutputError(f"{path}: a GLB file holds 4 GB at the most: choose PLY, or a larger voxel (marigold3d fuse)")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, total))
        file.write(struct.pack("<I4s", len(tree), b"JSON") + tree)
        file.write(struct.pack("<I4s", body, b"BIN\0"))
        for array in arrays:
            for start in range(0, len(array.rows), CHUNK_POINTS):
                array.change(array.rows[start : start + CHUNK_POINTS]).tofile(file)


def _tree(primitive: dict[str, Any], arrays: list[_Array], units: Units) -> dict[str, Any]:
    """The JSON part: a scene of one node, whose arrays follow each other in one buffer."""
    lengths = [len(a.rows) * a.row_bytes for a in arrays]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    views = [
        {"buffer": 0, "byteOffset": start, "byteLength": length, "target": array.target}
        for start, length, array in zip(starts, lengths, arrays, strict=True)
    ]
    generator = f"marigold3d {__version__}"
    return {
        "asset": {"version": "2.0", "generator": generator},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0], "extras": {"generator": generator, "units": units}}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [MATERIAL],
        "accessors": [{"bufferView": i, "count": len(a.rows)} | a.entry for i, a in enumerate(arrays)],
        "bufferViews": views,
        "buffers": [{"byteLength": sum(lengths)}],
    }
