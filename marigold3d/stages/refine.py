"""Refinement of a run: what can be matched is matched, what was done before an interruption is not done again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..align.held_out import HeldOut, held_out_points
from ..align.samples import sample
from ..align.sources import CueSource
from ..config import CameraConfig
from ..fusion.fuse import median_depth
from ..multiview.adjust import INCONSISTENT_PX, adjust_poses, photometric_residual
from ..multiview.matching import LUMA
from ..multiview.neighbours import MatchingViews
from ..multiview.refine import DepthAccess, Keyframes, Refinement, sweep_size
from ..multiview.sizes import shrunk
from ..multiview.sweep import SweepResult
from ..progress import Steps
from ..rigid import interpolate, inverse
from ..scan import Scan
from ..store import FrameArray
from ..types import DepthMap
from .job import Cameras, DepthStore, Job, digest
from .scene import fusion_views

LEAST_PARALLAX = 0.5  # share of the keyframes that must have two others to be matched with
CHECKED_SIDE = 320  # px, the pictures' longer side for which INCONSISTENT_PX was set
HOPELESS = 1.5  # times INCONSISTENT_PX: matching under such poses makes depth worse, as tried on rendered clips
LEAST_FOUND = 0.4  # share of the points of one view that should be found in others: 0.7 to 0.85 under good poses
LEAST_AGREED = 0.02  # share of the pixels that sweeps must agree on: less is chance


def refine_depth(
    job: Job, scan: Scan, cameras: Cameras, aligned: DepthStore, device: str
) -> Steps[tuple[Cameras, DepthStore]]:
    """Depth sharpened by matching views, and the cameras, adjusted where that was asked for and pays.

    The aligned depth itself where refinement is off, the clip has no parallax, or views do not agree.
    """
    config, points = job.config.refine, cameras.model
    if not config.enabled or points is None:
        return cameras, aligned
    report = job.report["refinement"] = {}
    keys = _keyframes(scan, cameras, aligned)
    if _without_parallax(keys, aligned):
        job.warn("refinement skipped: the keyframes have too little parallax to be matched")
        return cameras, aligned
    if config.poses or job.config.poses.source in ("file", "odometry"):
        given, (cameras, fit) = cameras, (yield from _in_line(job, keys, cameras, aligned, device))
        if not fit:
            return given, aligned
        keys = _keyframes(scan, cameras, aligned)
    work = _Work.open(job, scan, cameras, aligned)
    refinement = Refinement(keys, work.access(), work.images, config, device)
    yield from refinement.sweep()
    report["share_agreed"] = round((yield from refinement.confirm()), 4)
    if report["share_agreed"] < LEAST_AGREED:
        job.warn(
            "refinement skipped: matched views hardly agree anywhere; the camera poses may be wrong, or the clip is "
            "blurred or without texture"
        )
        return cameras, aligned
    report["share_from_views"] = round((yield from refinement.merge_keyframes()), 4)
    between = np.setdiff1d(np.flatnonzero(cameras.posed), keys.positions)
    yield from refinement.merge_between(between, cameras.T_world_camera)
    if not report.get("adjusted_poses", {}).get("kept"):  # the points were triangulated under the poses given
        report["held_out"] = _held_out_error(keys, work.refined, points, job.config.align.held_out)
    job.run.end_stage("refine")
    return cameras, work.refined


def _without_parallax(keys: Keyframes, aligned: DepthStore) -> bool:
    views = MatchingViews.of_depth_maps(keys.T_world_camera, map(aligned.get, keys.positions.tolist()), keys.camera)
    return views.parallax_share() < LEAST_PARALLAX


def _held_out_error(keys: Keyframes, refined: DepthStore, source: CueSource, share: float) -> dict[str, float | int]:
    """Error of the refined keyframes at the points that no alignment has seen."""
    errors = HeldOut()
    held = held_out_points(source.count, share)
    for i, position in enumerate(keys.positions.tolist()):
        cues, ids = source.cues(position, keys.T_world_camera[i])
        test = cues.select(held[ids])
        depth = refined.get(position)
        errors.add(sample(np.where(depth.valid, depth.depth, np.float32(np.nan)), test.uv), test.depth)
    return errors.report()


def _keyframes(scan: Scan, cameras: Cameras, aligned: DepthStore) -> Keyframes:
    views = fusion_views(scan, cameras, aligned)
    return Keyframes(views.positions, views.T_world_camera, cameras.intrinsics, median_depth(views))


@dataclass(frozen=True, eq=False)
class _Work:
    """What refinement keeps in the run folder. A frame's last array says that the frame is complete."""

    job: Job
    aligned: DepthStore
    refined: DepthStore
    swept: DepthStore
    score: FrameArray
    sure: DepthStore
    decided: FrameArray

    @classmethod
    def open(cls, job: Job, scan: Scan, cameras: Cameras, aligned: DepthStore) -> _Work:
        """The arrays, empty unless a run with the same cameras, alignment and settings was interrupted."""
        settings = job.config.as_dict()
        key = digest(
            [job.run.manifest["stages"].get(stage, {}).get("digest") for stage in ("poses", "depth")],
            [settings["align"], settings["refine"], job.report.get("alignment"), cameras.T_world_camera.tolist()],
        )
        fresh = not job.run.begin_stage("refine", key)
        size = sweep_size(cameras.intrinsics, job.config.refine.max_side)

        def store(name: str, size: tuple[int, int] | None) -> DepthStore:
            return DepthStore.open(job.run, name, scan, size, fresh=fresh)

        def array(name: str, width: int, height: int) -> FrameArray:
            return job.run.frames_array(name, (len(scan), height, width), fresh=fresh)

        return cls(
            job,
            aligned,
            store("refined", None),
            store("swept", size),
            array("swept_score", *size),
            store("sure", size),
            array("decided", 1, 1),
        )

    def images(self, positions: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """rgb of frames, in order."""
        frames = self.job.video.frames_at(list(positions), max_side=self.job.config.video.max_side)
        return (rgb for _, rgb in frames)

    def access(self) -> DepthAccess:
        return DepthAccess(
            self.aligned.get,
            self._swept,
            self._keep_swept,
            self.sure.get,
            self.sure.put,
            self.refined.get,
            self._keep,
            self._share,
        )

    def _swept(self, position: int) -> SweepResult | None:
        if position not in self.score:
            return None
        return SweepResult(self.swept.depth[position], self.swept.sigma[position], self.score[position])

    def _keep_swept(self, position: int, swept: SweepResult) -> None:
        self.swept.sigma[position], self.swept.depth[position] = swept.sigma, swept.depth
        self.score[position] = swept.score

    def _keep(self, position: int, depth: DepthMap, share: float) -> None:
        self.refined.put(position, depth)
        self.decided[position] = np.full((1, 1), share, np.float32)

    def _share(self, position: int) -> float | None:
        share = self.decided.get(position)
        return None if share is None else float(share[0, 0])


def _in_line(
    job: Job, keys: Keyframes, cameras: Cameras, aligned: DepthStore, device: str
) -> Steps[tuple[Cameras, bool]]:
    """Poses measured against the pictures, adjusted where asked for; and whether they fit well enough to match by.

    Imported ones that do not fit are named. Views matched under poses that are far off agree on wrong depth.
    """
    config, report = job.config.refine, job.report["refinement"]
    camera = keys.camera.scaled_to(*sweep_size(keys.camera, config.max_side))
    frames = job.video.frames_at(keys.positions.tolist(), max_side=job.config.video.max_side)
    grays = [np.rint(shrunk(rgb, camera.width, camera.height) @ LUMA).astype(np.uint8) for _, rgb in frames]

    def depth(i: int) -> DepthMap:
        return aligned.get(int(keys.positions[i]))

    found = yield from photometric_residual(grays, keys.T_world_camera, camera, depth, device=device)
    report["photometric_residual_px"] = round(found.across_px, 3) if found.matches else None
    report["photometric_matches"] = round(found.matches / max(found.tried, 1), 3)
    limit_px = INCONSISTENT_PX * max(camera.width, camera.height) / CHECKED_SIDE
    lost = report["photometric_matches"] < LEAST_FOUND
    fit = not (lost or found.across_px > HOPELESS * limit_px)
    if not (config.poses or job.config.poses.source == "odometry"):  # what follows from depth is never photometric
        if lost or found.across_px > limit_px:
            job.warn(
                f"the imported poses do not fit the pictures: {found.matches} of {found.tried} points of a view are "
                f"found in another, {found.across_px:.1f} px off the lines that the poses allow"
                + ("" if fit else ", so depth is left as aligned")
                + "; --refine-poses adjusts poses that are nearly right, without --poses they are found from the clip"
            )
        return cameras, fit
    stated = job.config.camera != CameraConfig()  # a focal length that was given is not touched
    adjusted = yield from adjust_poses(grays, keys.T_world_camera, camera, depth, focal=not stated, device=device)
    report["adjusted_poses"] = {
        "kept": adjusted.kept,
        "reason": adjusted.reason,
        "held_out_rms_px": [
            round(rms, 3) if np.isfinite(rms) else None for rms in (adjusted.rms_before_px, adjusted.rms_after_px)
        ],
        "focal_factor": round(adjusted.focal_factor, 5),
    }
    if not adjusted.kept:
        job.warn(
            f"the poses were not adjusted: {adjusted.reason}"
            + ("" if fit else "; refinement skipped: views cannot be matched under poses that do not fit")
        )
        return cameras, fit
    # Frames between keyframes move with them: the correction in the camera's own frame is interpolated.
    correction = inverse(keys.T_world_camera) @ adjusted.T_world_camera
    positions = keys.positions.astype(float)
    T = cameras.T_world_camera.copy()
    posed = np.flatnonzero(cameras.posed)
    T[posed] = T[posed] @ interpolate(positions, correction, posed.clip(positions[0], positions[-1]).astype(float))
    K = cameras.intrinsics
    f = adjusted.focal_factor
    return replace(cameras, intrinsics=replace(K, fx=K.fx * f, fy=K.fy * f), T_world_camera=T), True
