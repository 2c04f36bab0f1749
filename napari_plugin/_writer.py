"""Writers that napari calls with one layer: clouds of points, and depth maps, in the format that the name chosen says.

A layer that shows a cloud thinned gives the whole one in its metadata as `CLOUD`; of any other layer its own points are
written. Depth layers over a run are written with all the run knows, from its frames one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marigold3d.errors import InputError
from marigold3d.export.clouds import cloud_of_points, transformed, write_cloud
from marigold3d.export.depth_frames import Frames, write_depth, write_depth_frames
from marigold3d.types import Array, DepthMap, PointCloud, Units

from ._stacks import DepthStack, SigmaStack

CLOUD = "cloud"  # metadata key: a callable without arguments that returns the PointCloud a layer stands for


def write_points(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write a Points layer as .ply, .las, .laz or .glb, where its transform shows it; the paths written.

    InputError when its points are not in three dimensions, or none is shown.
    """
    whole = meta.get("metadata", {}).get(CLOUD)
    cloud = whole() if callable(whole) else _cloud_of_layer(np.asarray(data), meta)
    if not len(cloud):
        raise InputError(f"{_name(meta)}: no point is shown: there is nothing to save")
    write_cloud(path, transformed(cloud, _data_to_world_xyz(meta)))
    return [path]


def write_depth_image(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write an Image layer of z-depth as .exr, .png or .npz: (H, W) to that file, (T, H, W) to a folder of that name.

    Depth that is not finite and positive counts as unknown. InputError for colours, negative values and other shapes.
    """
    if meta.get("multiscale"):
        data = data[0]
    _require_depth(data, meta)
    units = _units(meta)
    if isinstance(data, DepthStack):
        encoding = data.run.encoding()
        return _named(write_depth_frames(path, lambda: _run_frames(data), encoding.units, encoding))
    if data.ndim == 2:
        return _named(write_depth(path, _depth_map(data, meta), units))
    return _named(write_depth_frames(path, lambda: _layer_frames(data, meta), units))


# -- points ------------------------------------------------------------------------------------------------------------


def _cloud_of_layer(points_zyx: NDArray[Any], meta: dict[str, Any]) -> PointCloud:
    """The points of a layer that are shown, in the colours of their faces."""
    if points_zyx.ndim != 2 or points_zyx.shape[1] != 3:
        raise InputError(f"{_name(meta)}: its points have {points_zyx.shape[-1]} dimensions; only z, y, x can be saved")
    count = len(points_zyx)
    shown = np.broadcast_to(np.asarray(meta.get("shown", True), np.bool_), count)
    rgba = np.broadcast_to(np.atleast_2d(np.asarray(meta.get("face_color", (1, 1, 1, 1)), np.float64)), (count, 4))
    colors = np.rint(255 * rgba[shown, :3].clip(0, 1)).astype(np.uint8)
    return cloud_of_points(points_zyx[shown, ::-1], colors, _units(meta))


def _data_to_world_xyz(meta: dict[str, Any]) -> Array:
    """(4, 4) map of x, y, z that a layer's scale, shear, rotation, translation and affine make together."""
    from napari.utils.transforms import Affine, CompositeAffine

    names = ("scale", "translate", "rotate", "shear")
    given = {name: meta[name] for name in names if meta.get(name) is not None}
    own = CompositeAffine(ndim=3, **{"scale": np.ones(3), "translate": np.zeros(3), **given}).affine_matrix
    beyond = meta.get("affine")
    zyx = own if beyond is None else Affine(affine_matrix=np.asarray(beyond), ndim=3).affine_matrix @ own
    reverse = np.eye(4)[[2, 1, 0, 3]]
    return np.asarray(reverse @ zyx @ reverse, np.float64)


# -- depth -------------------------------------------------------------------------------------------------------------


def _require_depth(data: Any, meta: dict[str, Any]) -> None:
    if meta.get("rgb"):
        raise InputError(f"{_name(meta)} is a colour image, not depth: choose the depth layer, or napari's own writer")
    if isinstance(data, SigmaStack):
        raise InputError(f"{_name(meta)} is written with its depth: choose the depth layer, and .exr or .npz")
    if data.ndim not in (2, 3):
        raise InputError(f"{_name(meta)}: depth must be (H, W) or (T, H, W), this layer is {tuple(data.shape)}")
    if np.dtype(data.dtype).kind not in "fiu":
        raise InputError(f"{_name(meta)}: depth must be real numbers, this layer holds {data.dtype}")


def _run_frames(stack: DepthStack) -> Frames:
    """The frames of a run that have depth of their own, with their sigma."""
    return ((index, stack.depth_map(index)) for index in stack.used)


def _layer_frames(stack: Any, meta: dict[str, Any]) -> Iterator[tuple[int, DepthMap]]:
    for index in range(stack.shape[0]):
        yield index, _depth_map(stack[index], meta)


def _depth_map(values: Any, meta: dict[str, Any]) -> DepthMap:
    depth = np.asarray(values).astype(np.float32)
    if np.any(depth < 0):
        raise InputError(f"{_name(meta)}: depth must not be negative: is this another kind of image?")
    valid = np.isfinite(depth) & (depth > 0)
    return DepthMap(np.where(valid, depth, np.float32(0)), valid)


# -- both --------------------------------------------------------------------------------------------------------------


def _units(meta: dict[str, Any]) -> Units:
    return "m" if meta.get("metadata", {}).get("units") == "m" else "arbitrary"


def _name(meta: dict[str, Any]) -> str:
    return f"layer {meta.get('name', '')!r}"


def _named(paths: list[Any]) -> list[str]:
    return [str(path) for path in paths]
