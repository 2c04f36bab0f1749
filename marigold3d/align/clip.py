"""All frames of a clip: each to the points it sees, frames with too few to their neighbours, some points held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import AlignConfig
from ..errors import GeometryError
from ..progress import FramePreview, Progress, Steps
from ..types import Array, DepthMap, Intrinsics, RelativeDepth, SparseCues
from .frame import fit_frame
from .neighbours import carried_cues
from .samples import sample


class PointSource(Protocol):
    """Where a frame's cues come from: an SfM model. `cues` gives them with the index of the point behind each."""

    @property
    def points(self) -> Array: ...

    def cues(self, position: int, T_world_camera: Array) -> tuple[SparseCues, NDArray[np.int64]]: ...


@dataclass
class HeldOut:
    """Error on points no fit has seen, for one way of aligning. Sums only, so that it does not grow with the clip."""

    count: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    within_1_25: int = 0

    def add(self, estimate: Array, truth: Array) -> None:
        """Depths (N,), NaN where there is no estimate."""
        good = np.isfinite(estimate)
        e, z = estimate[good], truth[good]
        self.count += len(z)
        self.absolute += float(np.abs(e - z).sum())
        self.relative += float((np.abs(e - z) / z).sum())
        self.within_1_25 += int((np.maximum(e / z, z / e) < 1.25).sum())

    def report(self) -> dict[str, float | int]:
        n = max(self.count, 1)
        return {
            "n": self.count,
            "mae": round(self.absolute / n, 6),
            "abs_rel": round(self.relative / n, 5),
            "delta1": round(self.within_1_25 / n, 5),
        }


@dataclass
class AlignmentReport:
    """How the clip was aligned: frames by kind, and the held-out error of the affine fit alone and of the whole."""

    own_cues: int = 0
    from_neighbours: int = 0
    not_aligned: int = 0
    scale_only: int = 0
    affine: HeldOut = field(default_factory=HeldOut)
    aligned: HeldOut = field(default_factory=HeldOut)

    def as_dict(self) -> dict[str, object]:
        return {
            "frames_aligned_to_points": self.own_cues,
            "frames_aligned_to_neighbours": self.from_neighbours,
            "frames_not_aligned": self.not_aligned,
            "frames_with_scale_only": self.scale_only,
            "held_out_affine": self.affine.report(),
            "held_out": self.aligned.report(),
        }


def held_out_points(count: int, share: float) -> NDArray[np.bool_]:
    """(count,) bool: the points kept back. Whole points, not observations: what one frame may not see, none may."""
    return np.random.default_rng(0).random(count) < share


def align_clip(
    relative: Callable[[int], RelativeDepth],
    store: Callable[[int, DepthMap], None],
    stored: Callable[[int], DepthMap],
    posed: NDArray[np.bool_],
    T_world_camera: Array,
    camera: Intrinsics,
    source: PointSource | None,
    config: AlignConfig,
) -> Steps[AlignmentReport]:
    """Align every posed frame. `relative(position)` reads, `store(position, depth)` writes, `stored` reads back.

    posed (T,) bool and T_world_camera (T, 4, 4) are over all used frames. Without a `source` of points the first frame
    sets an arbitrary scale and the others follow it. A frame that shares nothing with its neighbours, or has no depth
    of its own, is stored without valid depth. Raises GeometryError when nothing can be aligned.
    """
    report = AlignmentReport()
    positions = np.flatnonzero(posed)
    if len(positions) == 0:
        raise GeometryError("no frame has a camera pose, so nothing can be aligned")
    done: list[int] = []
    if source is None:
        store(int(positions[0]), reference_depth(relative(int(positions[0]))))
        done.append(int(positions[0]))
        yield Progress("align", 1, len(positions))
    else:
        held = held_out_points(len(source.points), config.held_out)
        for position in positions.tolist():
            depth = _align_to_points(
                relative(position), *source.cues(position, T_world_camera[position]), held, config, report
            )
            if depth is not None:
                store(position, depth)
                done.append(position)
                yield Progress("align", len(done), len(positions), FramePreview(position, depth.depth))
    if not done:
        raise GeometryError(f"no frame sees the {config.min_cues} points it takes to align its depth")
    for position in _nearest_first(positions, done):
        reference = min(done, key=lambda p: abs(p - position)) if source is not None else int(positions[0])
        poses = T_world_camera[reference], T_world_camera[position]
        depth = _align_to_cues(relative(position), carried_cues(stored(reference), *poses, camera), config)
        store(position, depth)
        if depth.valid.any():
            report.from_neighbours += 1
            done.append(position)
        else:
            report.not_aligned += 1
        yield Progress("align", len(done) + report.not_aligned, len(positions), FramePreview(position, depth.depth))
    return report


def _align_to_cues(relative: RelativeDepth, cues: SparseCues, config: AlignConfig) -> DepthMap:
    """The frame aligned to cues from a neighbour; nowhere valid when no cue falls on it."""
    try:
        return fit_frame(relative, cues, field=config.field, columns=config.field_columns).apply(relative)
    except GeometryError:
        nowhere = np.zeros_like(relative.values)
        return DepthMap(nowhere, nowhere > 0, nowhere)


def reference_depth(relative: RelativeDepth) -> DepthMap:
    """Depth of a frame nothing is known about: median 1, and far : near = 8 where the domain leaves the shift open.

    Raises GeometryError when the frame has no depth at all.
    """
    if not np.isfinite(relative.values).any():
        raise GeometryError("the first frame has no depth, so nothing sets the scene's scale: start later with --start")
    low, high = np.nanpercentile(relative.values, (2, 98))
    unit = (relative.values - low) / max(high - low, 1e-12)
    if relative.domain == "disparity":
        z = 1 / np.maximum(unit + 1 / 7, 1 / 50)
    elif relative.domain == "depth":
        z = unit + 1 / 7
    else:
        z = np.exp(relative.values) if relative.domain == "log_depth" else relative.values
    valid = np.isfinite(z) & (z > 0)
    z = np.where(valid, z / np.median(z[valid]), 0).astype(np.float32)
    return DepthMap(z, valid, np.float32(0.2) * z)


def _align_to_points(
    relative: RelativeDepth,
    cues: SparseCues,
    ids: NDArray[np.int64],
    held: NDArray[np.bool_],
    config: AlignConfig,
    report: AlignmentReport,
) -> DepthMap | None:
    """The frame aligned to its own points, held-out ones measured; None when it sees too few."""
    on_depth = np.isfinite(sample(relative.values, cues.uv))
    cues, ids = cues.select(on_depth), ids[on_depth]
    test = held[ids]
    if (~test).sum() < config.min_cues:
        return None
    alignment = fit_frame(relative, cues.select(~test), field=config.field, columns=config.field_columns)
    kept_back = cues.select(test)
    plain = alignment.fit
    report.own_cues += 1
    report.scale_only += plain.determined == "scale only"
    report.affine.add(replace(alignment, field=None).depth_at(relative, kept_back.uv), kept_back.depth)
    report.aligned.add(alignment.depth_at(relative, kept_back.uv), kept_back.depth)
    return alignment.apply(relative)


def _nearest_first(positions: NDArray[np.int64], done: list[int]) -> list[int]:
    """The positions not done, those next to finished ones first, so that each can lean on a neighbour."""
    finished = np.array(sorted(done))
    rest = np.setdiff1d(positions, finished)
    after = np.searchsorted(finished, rest)
    gap = np.minimum(
        np.abs(rest - finished[np.clip(after, 0, len(finished) - 1)]),
        np.abs(rest - finished[np.clip(after - 1, 0, None)]),
    )
    order: list[int] = rest[np.argsort(gap, kind="stable")].tolist()
    return order
