"""The refinement of a clip: sweep every keyframe, keep what several sweeps agree on, merge it with the prior, and
carry it to the frames between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..align.cue_arrays import joined
from ..align.frame import fit_frame
from ..align.held_out import HeldOut, held_out_points
from ..align.neighbours import carried_cues
from ..align.samples import sample
from ..align.sources import CueSource
from ..config import RefineConfig
from ..depth.device import choose_device, in_parallel
from ..progress import FramePreview, Progress, Steps
from ..types import Array, DepthMap, FloatImage, Intrinsics, RelativeDepth, SparseCues
from .consistency import View, compare, neighbour_positions, stereo_neighbours
from .merge import merge
from .sweep import SweepView, gray, sweep

MIN_SCORE = 0.3  # NCC under which a sweep's pixel is not believed
AGREE_RATIO = 0.03  # sweeps that agree do so within this share of the depth
AGREE_VIEWS = 1
CHECKED_AGAINST = 6
BETWEEN_COLUMNS = 24  # of the field that fits a frame between keyframes to their refined depth


@dataclass(frozen=True, eq=False)
class Keyframes:
    """The M posed keyframes: positions, poses (M, 4, 4), camera at the depth maps' size, typical depth of the scene."""

    positions: NDArray[np.int64]
    T_world_camera: Array
    camera: Intrinsics
    median_depth: float


@dataclass(frozen=True, eq=False)
class DepthAccess:
    """How refinement reads aligned depth and keeps its own, by position."""

    aligned: Callable[[int], DepthMap]
    swept: Callable[[int], DepthMap]
    keep_swept: Callable[[int, DepthMap], None]
    keep: Callable[[int, DepthMap], None]


def sweep_size(camera: Intrinsics, max_side: int) -> tuple[int, int]:
    """(width, height), even, at which views are matched."""
    scale = min(1.0, max_side / max(camera.width, camera.height))
    return 2 * round(camera.width * scale / 2), 2 * round(camera.height * scale / 2)


def has_parallax(keys: Keyframes, count: int) -> bool:
    """Whether most keyframes have at least two neighbours to be matched with."""
    found = [
        len(stereo_neighbours(keys.T_world_camera, i, keys.median_depth, count)) for i in range(len(keys.positions))
    ]
    return bool(np.median(found) >= 2)


def sweep_keyframes(
    keys: Keyframes, images: Iterator[NDArray[np.uint8]], depths: DepthAccess, config: RefineConfig, device: str
) -> Steps[None]:
    """Sweep every keyframe; `images` yields their rgb in order. Gray images stay in memory, max_keyframes at most."""
    size = sweep_size(keys.camera, config.max_side)
    camera = keys.camera.scaled_to(*size)
    grays = [(gray(rgb, *size) * 255).astype(np.uint8) for rgb in images]

    def one(i: int) -> DepthMap:
        near = stereo_neighbours(keys.T_world_camera, i, keys.median_depth, config.neighbours)
        views = [SweepView((grays[j] / 255).astype(np.float32), keys.T_world_camera[j]) for j in [i, *near]]
        return _swept(views, reduced(depths.aligned(int(keys.positions[i])), *size), camera, device)

    for i, swept in enumerate(in_parallel(one, len(keys.positions), choose_device(device))):
        position = int(keys.positions[i])
        depths.keep_swept(position, swept)
        yield Progress("sweep", i + 1, len(keys.positions), FramePreview(position, swept.depth))


def _swept(views: list[SweepView], prior: DepthMap, camera: Intrinsics, device: str) -> DepthMap:
    """Depth of the first view from the others; nowhere valid when there are none, or no prior."""
    if len(views) < 2 or not prior.valid.any():
        return DepthMap(np.zeros_like(prior.depth), np.zeros_like(prior.valid))
    shares = np.full(1, 0.1) if prior.sigma is None else (prior.sigma / np.maximum(prior.depth, 1e-9))[prior.valid]
    found = sweep(views[0], views[1:], camera, _filled(prior), max(float(np.median(shares)), 0.05), device)
    valid = (found.score > MIN_SCORE) & (found.depth > 0)
    return DepthMap(np.where(valid, found.depth, 0).astype(np.float32), valid, found.sigma * found.depth)


def merge_keyframes(keys: Keyframes, depths: DepthAccess, config: RefineConfig) -> Steps[float]:
    """Merge every keyframe's prior with what the sweeps agree on; the share of pixels that views decided."""
    size = sweep_size(keys.camera, config.max_side)
    camera = keys.camera.scaled_to(*size)
    decided = total = 0
    for i, position in enumerate(keys.positions.tolist()):
        own = View(depths.swept(position), keys.T_world_camera[i])
        rows = neighbour_positions(keys.T_world_camera, i, keys.median_depth, CHECKED_AGAINST)
        others = [View(depths.swept(int(keys.positions[j])), keys.T_world_camera[j]) for j in rows]
        verdict = compare(own, others, camera, AGREE_RATIO)
        agreed = own.depth.valid & (verdict.agree >= AGREE_VIEWS) & (verdict.contradict <= verdict.agree)
        prior = depths.aligned(position)
        height, width = prior.depth.shape
        share = (verdict.sigma / np.maximum(verdict.depth, 1e-9)).astype(np.float32)
        z, sigma, sure = (enlarged(a, width, height) for a in (verdict.depth, share, agreed))
        merged = merge(prior, z, sigma, sure.astype(bool))
        depths.keep(position, merged.depth)
        decided += int(merged.from_views.sum())
        total += merged.from_views.size
        yield Progress("refine", i + 1, len(keys.positions), FramePreview(position, merged.depth.depth))
    return decided / max(total, 1)


def refine_between(
    positions: NDArray[np.int64],
    T_world_camera: Array,
    keys: Keyframes,
    depths: DepthAccess,
    refined: Callable[[int], DepthMap],
) -> Steps[None]:
    """Bend the aligned depth of the frames between keyframes to the refined depth of the keyframes around them.

    positions (B,) of those frames; T_world_camera (T, 4, 4) of all used frames.
    """
    for done, position in enumerate(positions.tolist()):
        aligned = depths.aligned(position)
        around = [
            carried_cues(refined(int(keys.positions[j])), keys.T_world_camera[j], T_world_camera[position], keys.camera)
            for j in _around(keys.positions, position)
        ]
        depths.keep(position, bend(aligned, joined(around)))
        yield Progress("between", done + 1, len(positions), FramePreview(position, aligned.depth))


def bend(depth: DepthMap, cues: SparseCues) -> DepthMap:
    """A depth map bent to cues by a field alone; unchanged when none falls on it."""
    log_depth = np.where(depth.valid, np.log(np.maximum(depth.depth, 1e-12)), np.nan).astype(np.float32)
    relative = RelativeDepth(log_depth, "log_depth")
    inside = np.isfinite(sample(log_depth, cues.uv))
    if inside.sum() < 50:
        return depth
    return fit_frame(relative, cues.select(inside), columns=BETWEEN_COLUMNS).apply(relative)


def held_out_error(
    keys: Keyframes, refined: Callable[[int], DepthMap], source: CueSource, share: float
) -> dict[str, float | int]:
    """Error of the refined keyframes at the points that no alignment has seen."""
    errors = HeldOut()
    held = held_out_points(source.count, share)
    for i, position in enumerate(keys.positions.tolist()):
        cues, ids = source.cues(position, keys.T_world_camera[i])
        test = cues.select(held[ids])
        depth = refined(position)
        errors.add(sample(np.where(depth.valid, depth.depth, np.float32(np.nan)), test.uv), test.depth)
    return errors.report()


def _around(keyframes: NDArray[np.int64], position: int) -> list[int]:
    after = int(np.searchsorted(keyframes, position))
    return [i for i in (after - 1, after) if 0 <= i < len(keyframes)]


def reduced(depth: DepthMap, width: int, height: int) -> DepthMap:
    """The map at another size by nearest pixels: no depth is made up between two surfaces."""
    rows, columns = _nearest(depth.depth.shape[0], height), _nearest(depth.depth.shape[1], width)
    pick = np.ix_(rows, columns)
    return DepthMap(depth.depth[pick], depth.valid[pick], None if depth.sigma is None else depth.sigma[pick])


def enlarged(image: FloatImage | NDArray[np.bool_], width: int, height: int) -> NDArray[np.float32]:
    """An image (h, w) at (height, width) by nearest pixels."""
    return image[np.ix_(_nearest(image.shape[0], height), _nearest(image.shape[1], width))].astype(np.float32)


def _nearest(source: int, target: int) -> NDArray[np.intp]:
    return ((np.arange(target) + 0.5) * source / target).astype(np.intp)


def _filled(depth: DepthMap) -> FloatImage:
    return np.where(depth.valid, depth.depth, np.median(depth.depth[depth.valid])).astype(np.float32)
