"""A clip's alignment from its cue sources to stored depth: cues are gathered and some held out, all frames are solved
together, every depth map is written, and the held-out cues say how good it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..config import AlignConfig
from ..errors import GeometryError
from ..progress import FramePreview, Progress, Steps
from ..types import Array, DepthMap, Intrinsics, RelativeDepth, SparseCues
from .alignment import Alignment, solve_clip_steps
from .carried import carried_around
from .cue_store import JoinedCues
from .flow import FlowBetween
from .frame import FrameAlignment
from .held_out import GatheredCues, HeldOut
from .joint import JointSettings
from .samples import sample
from .sources import CueSource


@dataclass
class SourceReport:
    """What became of one source's cues: used for the alignment, rejected by it, and the error of those held out."""

    used: int = 0
    rejected: int = 0
    held_out: HeldOut = field(default_factory=HeldOut)

    def as_dict(self) -> dict[str, object]:
        return {"used": self.used, "rejected": self.rejected, "held_out": self.held_out.report()}


@dataclass
class AlignmentReport:
    """How a clip was aligned: every frame's solution, each source's cues, and the held-out error of two ways.

    affine: a fit of scale and shift to each frame's own cues; aligned: the whole.
    """

    alignment: Alignment
    sources: dict[str, SourceReport]
    affine: HeldOut = field(default_factory=HeldOut)
    aligned: HeldOut = field(default_factory=HeldOut)

    @property
    def not_aligned(self) -> int:
        """Frames left without depth."""
        return sum(f is None for f in self.alignment.frames)

    def as_dict(self) -> dict[str, object]:
        return {
            "verdicts": self.alignment.verdicts,
            "segments": self.alignment.segments,
            "sources": {name: s.as_dict() for name, s in self.sources.items()},
            "held_out_affine": self.affine.report(),
            "held_out": self.aligned.report(),
            **self.alignment.as_dict(),
        }


def align_clip(
    relative: Callable[[int], RelativeDepth],
    store: Callable[[int, DepthMap], None],
    positions: NDArray[np.int64],
    sources: Sequence[CueSource],
    config: AlignConfig,
    *,
    camera: Intrinsics | None = None,
    T_world_camera: Array | None = None,
    flow: FlowBetween | None = None,
    cuts: Iterable[int] = (),
) -> Steps[AlignmentReport]:
    """Align the frames at `positions` (P,), increasing. `relative(position)` reads, `store(position, depth)` writes.

    T_world_camera (T, 4, 4) of all used frames with `camera`, or `flow` between them: see `solve_clip`. cuts: positions
    that start a new scene. Frames that nothing ties to the scene are stored without valid depth. Raises GeometryError
    when nothing can be aligned.
    """
    if len(positions) == 0:
        raise GeometryError("no frame has a camera pose, so nothing can be aligned")
    poses = None if T_world_camera is None else T_world_camera[positions]
    gathered = [GatheredCues.of(s, positions, poses, config.held_out) for s in sources]
    if poses is not None and camera is not None and np.ptp(poses[:, :3, 3], axis=0).max() > 0:
        gathered += [c for s, g in zip(sources, gathered, strict=True) if (c := _carried(s, g, poses, camera))]
    alignment = yield from solve_clip_steps(
        _At(relative, positions),
        JoinedCues([g.kept for g in gathered], len(positions)),
        camera=None if poses is None else camera,
        T_world_camera=poses,
        flow=None if flow is None else lambda i, j: flow(int(positions[i]), int(positions[j])),
        cuts=np.searchsorted(positions, sorted(cuts)).tolist(),
        settings=JointSettings(field_columns=6 if config.field else 1),
    )
    if alignment.frames.count(None) == len(positions):
        raise GeometryError("no frame can be aligned: there are no cues, and the frames have nothing in common")
    report = AlignmentReport(alignment, {g.name: SourceReport() for g in gathered})
    for i, position in enumerate(positions.tolist()):
        frame, own = alignment.frames[i], relative(position)
        depth = alignment.apply(i, own)
        store(position, depth)
        if frame is not None:
            _count(report, frame, alignment.alone.get(i), own, i, gathered)
        yield Progress("apply", i + 1, len(positions), FramePreview(position, depth.depth))
    return report


@dataclass(frozen=True, eq=False)
class _At:
    """The relative depth of the frames at some positions, as a sequence."""

    relative: Callable[[int], RelativeDepth]
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> RelativeDepth:
        if not 0 <= i < len(self.positions):
            raise IndexError(i)
        return self.relative(int(self.positions[i]))


def _carried(source: CueSource, gathered: GatheredCues, poses: Array, camera: Intrinsics) -> GatheredCues | None:
    """What single frames measured, for the frames around them; None for points that every frame sees anyway."""
    if not source.of_single_frames:
        return None
    around = carried_around({i: c for i, c in enumerate(gathered.kept) if len(c)}, poses, camera)
    nothing = SparseCues.empty()
    kept = [around.get(i, nothing) for i in range(len(poses))]
    return GatheredCues(f"{gathered.name}, carried to other frames", kept, [nothing] * len(poses))


def _count(
    report: AlignmentReport,
    frame: FrameAlignment,
    alone: FrameAlignment | None,
    relative: RelativeDepth,
    i: int,
    gathered: list[GatheredCues],
) -> None:
    """Add a frame's cues, used, rejected and held out, to the report."""
    first = 0
    for g in gathered:
        entry, kept, held = report.sources[g.name], g.kept[i], g.held[i]
        if len(frame.fit.inliers):
            agree = frame.fit.inliers[first : first + len(kept)]
            on_depth = np.isfinite(sample(relative.values, kept.uv))
            entry.used += int(on_depth.sum())
            entry.rejected += int((on_depth & ~agree).sum())
        first += len(kept)
        if len(held):
            estimate = frame.depth_at(relative, held.uv)
            entry.held_out.add(estimate, held.depth)
            report.aligned.add(estimate, held.depth)
            if alone is not None:
                report.affine.add(alone.depth_at(relative, held.uv), held.depth)
