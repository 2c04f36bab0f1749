"""The surface of a signed distance field as triangles: marching cubes by Open3D, slab by slab, then cleaned up.

A slab is a share of the blocks, with the blocks around it; of a triangle that two slabs find, the one that owns its
block keeps it. So memory holds a slab and the triangles, never the field.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..errors import GeometryError
from ..progress import Progress, Steps
from ..types import TriangleMesh, Units
from .blocks import COLUMNS, SIDE, BlockStore, Keys, coords_of, keys_of

SLAB = 8192  # blocks whose surface is found together: 84 MB, and as much again in Open3D
AROUND = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), -1).reshape(-1, 3)


def extract_surface(store: BlockStore, voxel: float, least_weight: float, units: Units) -> Steps[TriangleMesh]:
    """Triangles where the distance of `store` changes its sign, between voxels of at least this weight.

    Vertex colours and normals, which point to the side the cameras were on. GeometryError when there is no surface.
    """
    parts = []
    for start in range(0, len(store), SLAB):
        parts.append(_slab(store, store.keys[start : start + SLAB], voxel, least_weight, units))
        yield Progress("surface", min(start + SLAB, len(store)), len(store))
    if not sum(len(p.faces) for p in parts):
        raise GeometryError("no surface was found: try a larger --voxel, or --min-observations 1")
    return _welded(parts)


def _slab(store: BlockStore, own: Keys, voxel: float, least_weight: float, units: Units) -> TriangleMesh:
    """The triangles in the blocks `own`."""
    o3d: Any = import_module("open3d")
    coords = coords_of(own)
    around = np.unique(keys_of((coords[:, None] + AROUND).reshape(-1, 3)))
    around = around[store.has(around)]
    float32, device = o3d.core.float32, o3d.core.Device("CPU:0")
    names, channels = ("tsdf", "weight", "color"), (1, 1, 3)
    grid = o3d.t.geometry.VoxelBlockGrid(names, (float32,) * 3, channels, voxel, SIDE, len(around), device)
    rows, _ = grid.hashmap().activate(o3d.core.Tensor(coords_of(around).astype(np.int32)))
    values = store.read(store.rows(around))  # (B, COLUMNS, VOXELS)
    shape, first = (len(around), SIDE, SIDE, SIDE), 0
    for name, count in zip(names, channels, strict=True):
        part = np.moveaxis(values[:, first : first + count], 1, -1)
        grid.attribute(name).numpy()[rows.numpy()] = part.reshape(*shape, count)
        first += count
    assert first == COLUMNS
    found = grid.extract_triangle_mesh(least_weight)
    if found.is_empty() or "indices" not in found.triangle:
        return _empty(units)
    vertices, faces = found.vertex.positions.numpy(), found.triangle.indices.numpy()
    middle = vertices[faces].astype(float).mean(1)
    mine = np.isin(keys_of(np.floor(middle / (SIDE * voxel)).astype(np.int64)), own)
    colors = np.clip(255 * found.vertex.colors.numpy() + 0.5, 0, 255).astype(np.uint8)  # Open3D divides by 255
    whole = TriangleMesh(vertices, faces.astype(np.int32), found.vertex.normals.numpy(), colors, units)
    return whole.select(mine)


def _empty(units: Units) -> TriangleMesh:
    rows = np.zeros((0, 3))
    return TriangleMesh(
        rows.astype(np.float32), rows.astype(np.int32), rows.astype(np.float32), rows.astype(np.uint8), units
    )


def _welded(parts: list[TriangleMesh]) -> TriangleMesh:
    """One mesh; vertices that slabs share are at the same place to the last bit."""
    vertices = np.concatenate([p.vertices for p in parts])
    starts = np.cumsum([0, *(len(p.vertices) for p in parts[:-1])])
    faces = np.concatenate([p.faces + np.int32(s) for p, s in zip(parts, starts, strict=True)])
    normals, colors = (np.concatenate([getattr(p, name) for p in parts]) for name in ("normals", "colors"))
    _, first, same = np.unique(vertices + np.float32(0), axis=0, return_index=True, return_inverse=True)
    faces = same.reshape(-1)[faces].astype(np.int32)
    flat = (faces == np.roll(faces, 1, axis=1)).any(1)  # marching cubes leaves triangles without area
    return TriangleMesh(vertices[first], faces[~flat], normals[first], colors[first], parts[0].units)


# -- cleaning up ------------------------------------------------------------------------------------------------------


def without_small_parts(mesh: TriangleMesh, least: int) -> TriangleMesh:
    """The mesh without connected parts of fewer than `least` triangles; the largest part always stays."""
    if not len(mesh.faces):
        return mesh
    a, b = mesh.faces[:, [0, 1, 2]].ravel(), mesh.faces[:, [1, 2, 0]].ravel()
    n = len(mesh.vertices)
    _, part = connected_components(coo_matrix((np.ones(len(a), bool), (a, b)), (n, n)), directed=False)
    sizes = np.bincount(part[mesh.faces[:, 0]])
    return mesh.select((sizes >= min(least, sizes.max()))[part[mesh.faces[:, 0]]])


def simplified(mesh: TriangleMesh, triangles: int) -> TriangleMesh:
    """At most about so many triangles, by quadric error metrics (Garland and Heckbert, SIGGRAPH 1997), by Open3D.

    Colours and normals are those of the nearest vertex before.
    """
    if len(mesh.faces) <= triangles:
        return mesh
    o3d: Any = import_module("open3d")
    legacy = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(mesh.vertices.astype(float)), o3d.utility.Vector3iVector(mesh.faces)
    )
    small = legacy.simplify_quadric_decimation(triangles)
    vertices, faces = np.asarray(small.vertices), np.asarray(small.triangles, np.int32)
    _, nearest = cKDTree(mesh.vertices).query(vertices)
    picked: NDArray[Any] = nearest
    return TriangleMesh(
        vertices.astype(np.float32), faces, mesh.normals[picked], mesh.colors[picked], mesh.units
    ).select(np.ones(len(faces), bool))
