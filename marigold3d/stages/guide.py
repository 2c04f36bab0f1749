"""Guided diffusion on keyframes: where a diffusion model is at hand and cues are known, they steer its sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..align.cue_store import JoinedCues
from ..align.held_out import GatheredCues
from ..align.sources import CueSource, FrameCues
from ..camera import pixel_grid
from ..depth import DepthEstimator
from ..errors import GeometryError, UsageError
from ..progress import FramePreview, Progress, Steps
from ..types import DepthMap, RelativeDepth, SparseCues
from .job import Cameras, Job

LEAST_CUES = 10  # of a keyframe: fewer steer nothing
STEP = 24  # px between the samples of guided depth that tie other frames to it
LEAST_SHARE = 0.02  # no guided depth is taken to be surer than this share of it

Relative = Callable[[int], RelativeDepth]


def guide_keyframes(
    job: Job, cameras: Cameras, relative: Relative, sources: Sequence[CueSource], estimator: DepthEstimator
) -> Steps[tuple[Relative, FrameCues]]:
    """Relative depth with guided keyframes in place of plain ones, and their depth as cues for the joint solve.

    The links between frames carry what guidance corrected to the frames in between. Held-out cues stay unseen. Raises
    UsageError for an estimator that is no diffusion model.
    """
    from ..align.guided import GuidedEstimator  # loads torch
    from ..depth.marigold import MarigoldEstimator

    if not isinstance(estimator, MarigoldEstimator):
        raise UsageError("--guide steers a diffusion model: choose one with --model, see `marigold3d models`")
    cues = _cues_of_keyframes(cameras, sources, job.config.align.held_out, job.config.align.guided_frames)
    guided = GuidedEstimator(estimator, steps=job.config.depth.steps)
    found: dict[int, tuple[RelativeDepth, SparseCues]] = {}
    errors: list[tuple[float, float]] = []
    for done, (position, rgb) in enumerate(job.video.frames_at(cues, max_side=job.config.video.max_side), 1):
        try:
            result = guided.align(rgb, cues[position])
        except GeometryError as error:
            job.warn(f"a keyframe is not guided: {error}")
            continue
        found[position] = (result.relative, _samples(result.depth))
        errors.append(result.cue_error)
        yield Progress("guide", done, len(cues), FramePreview(position, result.depth.depth))
    if not found:
        job.warn(f"no keyframe has {LEAST_CUES} cues that could guide it: depth is as the model gave it")
    job.report["guidance"] = {"keyframes": sorted(found), "cue_error_before_after": errors}
    dense = FrameCues("guided diffusion", cameras.units, {p: c for p, (_, c) in found.items()}, measured=False)
    return lambda position: found[position][0] if position in found else relative(position), dense


def _cues_of_keyframes(
    cameras: Cameras, sources: Sequence[CueSource], share: float, most: int
) -> dict[int, SparseCues]:
    """Cues that may be seen, of evenly spread keyframes that have enough."""
    keys = cameras.keyframes
    gathered = [GatheredCues.of(s, keys, cameras.T_world_camera[keys], share) for s in sources]
    cues = JoinedCues([g.kept for g in gathered], len(keys))
    enough = [i for i, c in cues.items() if len(c) >= LEAST_CUES]
    spread = np.linspace(0, len(enough) - 1, min(most, len(enough))).round().astype(int)
    return {int(keys[enough[k]]): cues[enough[k]] for k in spread}


def _samples(depth: DepthMap) -> SparseCues:
    """The map's depth every few pixels."""
    height, width = depth.depth.shape
    pick = np.s_[STEP // 2 :: STEP, STEP // 2 :: STEP]
    valid = depth.valid[pick].ravel()
    z = depth.depth[pick].ravel()[valid].astype(float)
    sigma = LEAST_SHARE * z
    if depth.sigma is not None:
        sigma = np.maximum(depth.sigma[pick].ravel()[valid], sigma)
    return SparseCues(pixel_grid(width, height)[pick].reshape(-1, 2)[valid], z, sigma, "guided diffusion")
