"""Point clouds as PLY: binary little-endian out; binary or ascii in, with whatever properties there are.

A file carries all of a `PointCloud`: reading what was written gives the same bits back. Comments state units and axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast, get_args

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..atomic import atomic_path
from ..errors import InputError
from ..types import PointCloud, Units

CHUNK_POINTS = 1 << 18  # points packed at a time, so that writing needs no second copy of the cloud

VERTEX = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    + [(name, "u1") for name in ("red", "green", "blue")]
    + [("sigma", "<f4"), ("observations", "<i4"), ("frame", "<i4")]
)

PLY_NAMES = {"<f4": "float", "|u1": "uchar", "<i4": "int"}
_TYPE_NAMES = (  # numpy's name, PLY's old and new ones
    *(("i1", "char", "int8"), ("u1", "uchar", "uint8"), ("i2", "short", "int16"), ("u2", "ushort", "uint16")),
    *(("i4", "int", "int32"), ("u4", "uint", "uint32"), ("f4", "float", "float32"), ("f8", "double", "float64")),
)
PLY_TYPES = {ply: numpy_name for numpy_name, *names in _TYPE_NAMES for ply in names}
BYTE_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
ALIASES = {
    "diffuse_red": "red",
    "diffuse_green": "green",
    "diffuse_blue": "blue",
    "r": "red",
    "g": "green",
    "b": "blue",
}


def write_ply(path: str | Path, cloud: PointCloud) -> None:
    """Write a cloud with normals, colours, sigma, observation count and source frame. OutputError when it cannot be."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(cloud))
        for start in range(0, len(cloud), CHUNK_POINTS):
            _pack(cloud, slice(start, start + CHUNK_POINTS)).tofile(file)


def _header(cloud: PointCloud) -> bytes:
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment marigold3d {__version__}",
        f"comment units {cloud.units}",
        "comment world frame of the camera poses; cameras are x right, y down, z forward",
        "comment sigma: standard deviation in units; observations: frames that saw it; frame: source frame, -1 unknown",
        f"element vertex {len(cloud)}",
        *(f"property {PLY_NAMES[VERTEX[name].str]} {name}" for name in VERTEX.names or ()),
        "end_header",
    ]
    return ("\n".join(lines) + "\n").encode("ascii")


def _pack(cloud: PointCloud, part: slice) -> NDArray[Any]:
    packed = np.empty(len(cloud.sigma[part]), VERTEX)
    for i in range(3):
        packed["xyz"[i]] = cloud.points[part, i]
        packed[("nx", "ny", "nz")[i]] = cloud.normals[part, i]
        packed[("red", "green", "blue")[i]] = cloud.colors[part, i]
    packed["sigma"], packed["observations"] = cloud.sigma[part], cloud.observations[part]
    packed["frame"] = cloud.frame_index[part]
    return packed


def read_ply(path: str | Path) -> PointCloud:
    """Read the points of any PLY. What the file lacks: colours grey, normals zero, sigma NaN, observations 1, frame -1.

    Raises InputError when it is no PLY, has no vertices with x, y, z, or ends early.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a .ply point cloud")
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({str(error).splitlines()[0]}); copy or write it again") from error


def _read(path: Path, file: BinaryIO) -> PointCloud:
    layout, count, dtype, units = _parse_header(path, file)
    cloud = blank_cloud(count, units)
    start = 0
    for chunk in _chunks(file, layout, dtype, count):
        _unpack(chunk, cloud, slice(start, start + len(chunk)))
        start += len(chunk)
    if start < count:
        raise InputError(f"{path}: it ends after {start} of {count} points; copy or write it again")
    return cloud


def _parse_header(path: Path, file: BinaryIO) -> tuple[str, int, np.dtype[Any], Units]:
    """(layout, number of vertices, vertex dtype, units); the file is left at the first vertex."""
    if file.readline(80).strip() != b"ply":
        raise InputError(f"{path}: not a PLY file (its first line is not 'ply')")
    layout, units = "", "arbitrary"
    elements: list[tuple[str, int, list[tuple[str, list[str]]]]] = []
    while (line := file.readline(4096)) and line.strip() != b"end_header":
        match line.decode("latin-1").split():
            case ["format", layout, *_]:
                pass
            case ["comment", "units", unit, *_]:
                units = unit if unit in get_args(Units) else units
            case ["element", name, number]:
                elements.append((name, int(number), []))
            case ["property", *kind, name] if elements:
                elements[-1][2].append((ALIASES.get(name, name), kind))
    if layout not in BYTE_ORDERS or not line:
        raise InputError(f"{path}: a damaged PLY header (format {layout or 'missing'}); write the file again")
    return layout, *_vertex_layout(path, elements, BYTE_ORDERS[layout]), cast(Units, units)


def _vertex_layout(path: Path, elements: list[Any], order: str) -> tuple[int, np.dtype[Any]]:
    """(count, dtype) of the vertices, which must come first and hold no lists."""
    name, count, properties = elements[0] if elements else ("nothing", 0, [])
    names = [n for n, _ in properties]
    if name != "vertex" or not {"x", "y", "z"} <= set(names) or any(k[0] not in PLY_TYPES for _, k in properties):
        raise InputError(
            f"{path}: the first element must be vertices with x, y, z and no lists; export it as a plain cloud"
        )
    return count, np.dtype([(n, order + PLY_TYPES[kind[0]]) for n, kind in properties])


def _chunks(file: BinaryIO, layout: str, dtype: np.dtype[Any], count: int) -> Iterator[NDArray[Any]]:
    for start in range(0, count, CHUNK_POINTS):
        wanted = min(CHUNK_POINTS, count - start)
        if layout == "ascii":
            lines = [line.decode("ascii") for line in islice(file, wanted)]
            yield np.loadtxt(lines, dtype, ndmin=1) if lines else np.empty(0, dtype)
        else:
            raw = file.read(wanted * dtype.itemsize)
            yield np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)


def blank_cloud(count: int, units: Units) -> PointCloud:
    """A cloud to fill in, of which nothing is known: grey points at 0 without normals, sigma NaN, frame -1."""
    return PointCloud(
        points=np.zeros((count, 3), np.float32),
        colors=np.full((count, 3), 160, np.uint8),
        normals=np.zeros((count, 3), np.float32),
        sigma=np.full(count, np.nan, np.float32),
        observations=np.ones(count, np.int32),
        frame_index=np.full(count, -1, np.int32),
        units=units,
    )


def _unpack(chunk: NDArray[Any], cloud: PointCloud, part: slice) -> None:
    """Copy the properties that `chunk` has into rows `part` of `cloud`."""
    names = chunk.dtype.names or ()
    for target, columns in ((cloud.points, ("x", "y", "z")), (cloud.normals, ("nx", "ny", "nz"))):
        for i, name in enumerate(columns):
            if name in names:
                target[part, i] = chunk[name]
    for i, name in enumerate(("red", "green", "blue")):
        if name in names:
            is_float = chunk.dtype[name].kind == "f"  # some writers store colours as 0..1
            cloud.colors[part, i] = np.round(chunk[name] * 255).clip(0, 255) if is_float else chunk[name]
    for column, name in ((cloud.sigma, "sigma"), (cloud.observations, "observations"), (cloud.frame_index, "frame")):
        if name in names:
            column[part] = chunk[name]
