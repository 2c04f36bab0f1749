"""A point cloud as a picture, in numpy alone: no display, no graphics library, and equal input gives the same pixels.

Every point is a round splat of its own size in the world, the nearest one wins each pixel, eye-dome lighting makes the
shape readable without normals (Boucheny 2009), and 2 x 2 samples a pixel smooth the edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .camera import project
from .rigid import inverse, transform
from .types import Array, FloatImage, Intrinsics, PointCloud, TriangleMesh

SUPERSAMPLING = 2
MAX_SPLAT_PX = 24  # samples across; a point right before the lens must not cover the picture
BACKGROUND_TOP = (74, 80, 91)
BACKGROUND_BOTTOM = (38, 42, 49)
EDL_STRENGTH = 1.1  # darkness of a depth step
EDL_LIMIT = 0.12  # log-depth steps count up to this: a far background must not blacken an edge
EDL_RADII = (1, 3)  # samples; the small one draws outlines, the large one hollows

Keys = NDArray[np.uint64]
EMPTY = np.uint64(np.iinfo(np.uint64).max)


def sampled_mesh(mesh: TriangleMesh, count: int) -> PointCloud:
    """About `count` points spread evenly over a mesh, to be drawn: colours and normals between those of the corners."""
    corners = mesh.vertices[mesh.faces]  # (F, 3, 3)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).astype(float)
    ends = np.ceil(np.cumsum(area) * (count / max(area.sum(), 1e-30))).astype(np.int64)
    face = np.repeat(np.arange(len(area)), np.diff(ends, prepend=0))
    a, b = np.random.default_rng(0).uniform(size=(2, len(face))).astype(np.float32)
    a, b = np.where(a + b > 1, 1 - a, a), np.where(a + b > 1, 1 - b, b)
    weights = np.stack([1 - a - b, a, b], 1)

    def between(values: NDArray[Any]) -> NDArray[np.float32]:
        return np.einsum("nk,nkc->nc", weights, values[mesh.faces[face]].astype(np.float32))

    n = len(face)
    unknown, ones = np.full(n, np.nan, np.float32), np.ones(n, np.int32)
    colors = (between(mesh.colors) + np.float32(0.5)).astype(np.uint8)
    return PointCloud(between(mesh.vertices), colors, between(mesh.normals), unknown, ones, -ones, mesh.units)


def render_points(
    points: NDArray[np.floating],
    colors: NDArray[np.uint8],
    camera: Intrinsics,
    T_world_camera: Array,
    point_size: float | NDArray[np.floating],
) -> NDArray[np.uint8]:
    """Picture (camera.height, camera.width, 3) uint8 of world points (N, 3) with sRGB colors (N, 3).

    `point_size` is the diameter of a splat in world units, one for all or (N,). Distortion of the camera is ignored.
    """
    fine = camera.undistorted().scaled_to(camera.width * SUPERSAMPLING, camera.height * SUPERSAMPLING)
    uv, z, kept = _visible(points, fine, T_world_camera)
    size = np.broadcast_to(np.asarray(point_size, np.float32), len(points))[kept]
    winners = _close_pinholes(_nearest(uv, z, fine.fx * size / z, fine))
    hit = winners != EMPTY
    image = _background(fine)
    image[hit] = colors[kept][(winners[hit] & np.uint64(0xFFFFFFFF)).astype(np.intp)]
    image *= _eye_dome(_depth_of(winners))[..., None]
    return _reduced(image)


def _visible(
    points: NDArray[np.floating], camera: Intrinsics, T_world_camera: Array
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp]]:
    """Pixels (M, 2), z (M,) and indices (M,) of the points before the camera and inside its picture."""
    in_camera = transform(inverse(T_world_camera).astype(np.float32), points.astype(np.float32))  # (N, 3)
    kept = np.flatnonzero(in_camera[:, 2] > 1e-6)
    uv = project(in_camera[kept], camera)  # (M, 2)
    inside = np.all((uv >= 0) & (uv < (camera.width, camera.height)), axis=1)
    kept = kept[inside]
    return uv[inside].astype(np.float32), in_camera[kept, 2], kept


def _nearest(uv: NDArray[np.float32], z: NDArray[np.float32], size_px: NDArray[np.float32], camera: Intrinsics) -> Keys:
    """(H, W) key of the nearest splat that covers each sample, EMPTY where none does.

    A key is the float32 bits of z over the point's number: positive floats order like their bits, so the smallest key
    is the nearest point, and ties do not depend on the order of writing.
    """
    keys = (z.view(np.uint32).astype(np.uint64) << np.uint64(32)) | np.arange(len(z), dtype=np.uint64)
    winners = np.full(camera.height * camera.width, EMPTY)
    widths = np.clip(np.rint(size_px), 1, MAX_SPLAT_PX).astype(np.int64)
    for width in np.unique(widths):
        group = np.flatnonzero(widths == width)
        corner = np.floor(uv[group] - 0.5 * (width - 1)).astype(np.int64)  # top-left sample of the splat
        for dx, dy in _disc(int(width)):
            x, y = corner[:, 0] + dx, corner[:, 1] + dy
            inside = (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
            np.minimum.at(winners, (y * camera.width + x)[inside], keys[group][inside])
    return winners.reshape(camera.height, camera.width)


def _disc(width: int) -> NDArray[np.int64]:
    """(K, 2) offsets of the samples of a round splat `width` samples across."""
    offsets = np.stack(np.meshgrid(np.arange(width), np.arange(width)), -1).reshape(-1, 2)
    from_centre = np.hypot(*(offsets - 0.5 * (width - 1)).T)
    return np.asarray(offsets[from_centre <= 0.5 * width])


def _close_pinholes(winners: Keys) -> Keys:
    """Fill empty samples that have at least five covered neighbours out of eight, with the farthest of them."""
    hit = np.pad((winners != EMPTY).astype(np.uint8), 1)
    count = np.zeros(winners.shape, np.uint8)
    for dy, dx in _NEIGHBOURS:
        count += _shifted(hit, dy, dx)
    rows, columns = np.nonzero((count >= 5) & (winners == EMPTY))
    around = np.stack([np.pad(winners, 1)[rows + 1 + dy, columns + 1 + dx] for dy, dx in _NEIGHBOURS])  # (8, M)
    filled = winners.copy()
    filled[rows, columns] = np.where(around == EMPTY, np.uint64(0), around).max(0)
    return filled


_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def _shifted(padded: NDArray[Any], dy: int, dx: int, margin: int = 1) -> NDArray[Any]:
    """The inner part of an array padded by `margin`, looked up (dy, dx) away."""
    height, width = padded.shape[0] - 2 * margin, padded.shape[1] - 2 * margin
    return padded[margin + dy : margin + dy + height, margin + dx : margin + dx + width]


def _depth_of(winners: Keys) -> FloatImage:
    """z (H, W) float32 of each sample, infinity where nothing is."""
    z = (winners >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return np.where(winners == EMPTY, np.float32(np.inf), z)


def _eye_dome(z: FloatImage) -> FloatImage:
    """Light (H, W) in (0, 1]: a sample darkens by how much nearer its neighbours are, in log depth."""
    log_z = np.log(z)
    occlusion = np.zeros_like(z)
    for radius in EDL_RADII:
        padded = np.pad(log_z, radius, mode="edge")
        for dy, dx in _NEIGHBOURS:
            with np.errstate(invalid="ignore"):
                step = log_z - _shifted(padded, dy * radius, dx * radius, radius)
            # A background sample is infinitely far: nothing shades it.
            occlusion += np.where(np.isfinite(log_z), np.clip(step / EDL_LIMIT, 0, 1), 0)
    return np.exp(-EDL_STRENGTH * occlusion / (len(EDL_RADII) * len(_NEIGHBOURS))).astype(np.float32)


def _background(camera: Intrinsics) -> FloatImage:
    """A soft vertical gradient (H, W, 3)."""
    t = np.linspace(0, 1, camera.height, dtype=np.float32)[:, None, None]
    top, bottom = np.array(BACKGROUND_TOP, np.float32), np.array(BACKGROUND_BOTTOM, np.float32)
    return np.broadcast_to(top + t * (bottom - top), (camera.height, camera.width, 3)).copy()


def _reduced(image: FloatImage) -> NDArray[np.uint8]:
    """Mean over the samples of each pixel, (H / 2, W / 2, 3) uint8."""
    s = SUPERSAMPLING
    height, width = image.shape[0] // s, image.shape[1] // s
    mean = image.reshape(height, s, width, s, 3).mean((1, 3))
    return np.asarray(np.clip(np.rint(mean), 0, 255), np.uint8)
