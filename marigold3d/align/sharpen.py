"""After the joint solve: each frame is bent further by its own cues, on a grid too fine for all frames together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..progress import Progress, Steps
from ..types import SparseCues
from .cue_arrays import sigma_shares
from .field import ScaleField, fit_field, grid_shape
from .frame import FIELD_MIN_CUES, FrameAlignment
from .robust import mad

FINE_COLUMNS = (8, 18)  # nodes along the longer side, at least and at most: about as many nodes as cues
FINE_STEP = 0.16  # prior standard deviation of the difference between adjacent ones
FINE_FLOOR = 0.02  # least uncertainty of a node far from any cue
FADING = (1.0, 0.5, 0.25)  # weight of the fine fields 0, 1, 2 frames away from one that has no cues of its own


@dataclass(frozen=True, eq=False)
class Bend:
    """What a frame's own cues add to its coarse field, and the spread of the log residuals that stay."""

    field: ScaleField
    spread: float


def sharpened(
    frames: Sequence[FrameAlignment | None],
    cues: Mapping[int, tuple[NDArray[np.float32], SparseCues, NDArray[np.bool_]]],
) -> Steps[list[FrameAlignment | None]]:
    """Consecutive frames of one scene with fine fields in place of coarse ones.

    cues: by frame, the values (M,) of its map at M cues, these, and which of them (M,) the coarse field meets. A frame
    without any takes the mean of the fields beside it.
    """
    columns = int(np.clip(np.sqrt(np.median([len(v) for v, *_ in cues.values()] or [0])), *FINE_COLUMNS))
    bends: dict[int, Bend] = {}
    for done, (i, own) in enumerate(cues.items(), 1):
        if (frame := frames[i]) and (bend := _bend(frame, *own, columns)):
            bends[i] = bend
        yield Progress("sharpen", done, len(cues))
    out = list(frames)
    for i, frame in enumerate(frames):
        around = [i] if i in bends else range(i - len(FADING) + 1, i + len(FADING))
        near = [(abs(j - i), bends[j]) for j in around if j in bends]
        if frame is not None and frame.field is not None and near:
            out[i] = FrameAlignment(frame.fit, _added(frame.field, near, columns), max(b.spread for _, b in near))
    return out


def _bend(
    frame: FrameAlignment, v: NDArray[np.float32], cues: SparseCues, agree: NDArray[np.bool_], columns: int
) -> Bend | None:
    """The fine field that a frame's cues ask for beyond its coarse one; None when they are too few."""
    coarse = frame.field
    if coarse is None or agree.sum() < FIELD_MIN_CUES:
        return None
    base = _on_fine_grid(coarse, columns)
    z = frame.fit.depth(v).astype(float) * np.exp(base.at(cues.uv))
    good = np.isfinite(z)
    ratio = np.log(cues.depth[good] / z[good])
    bend = fit_field(
        cues.uv[good],
        ratio,
        sigma_shares(cues)[good],
        coarse.width,
        coarse.height,
        base.nodes.shape,
        trusted=agree[good],
        step_sigma=FINE_STEP,
    )
    return Bend(bend, mad(ratio - bend.at(cues.uv[good])))


def _on_fine_grid(field: ScaleField, most_columns: int) -> ScaleField:
    """The same field on the fine grid."""
    rows, columns = grid_shape(field.width, field.height, most_columns)
    at = np.stack(np.meshgrid(np.linspace(0, field.width, columns), np.linspace(0, field.height, rows)), -1)
    uv = at.reshape(-1, 2)
    shape = rows, columns
    return replace(field, nodes=field.at(uv).reshape(shape), node_sigma=field.sigma_at(uv).reshape(shape))


def _added(coarse: ScaleField, bends: Sequence[tuple[int, Bend]], columns: int) -> ScaleField:
    """A coarse field and the mean of the bends around it; a bend counts by its nearness in time and its certainty."""
    base = _on_fine_grid(coarse, columns)
    weights = np.stack([FADING[away] / b.field.node_sigma**2 for away, b in bends])  # (B, R, C)
    nodes = np.stack([b.field.nodes for _, b in bends])
    sigma = np.stack([b.field.node_sigma for _, b in bends]).min(0)
    # Where no cue is near, a bend knows nothing, and what it might be there is no more than what it is elsewhere.
    unknown = np.hypot(base.node_sigma, max(float(np.std(nodes)), FINE_FLOOR))
    total = base.nodes + (weights * nodes).sum(0) / weights.sum(0)
    return replace(base, nodes=total, node_sigma=np.minimum(sigma, unknown))
