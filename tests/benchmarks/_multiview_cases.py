"""For benchmarks/multiview.py: clips with keyframes, prior and truth, the figures, and the calls of what is measured.

Everything is in the clip's own units; each depth that is scored is brought to metres by one factor a clip.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from PIL import Image
from scipy.ndimage import gaussian_filter

from marigold3d.align import fit_frame
from marigold3d.config import DepthConfig, RefineConfig, VideoConfig
from marigold3d.depth import load_estimator
from marigold3d.multiview.neighbours import MatchingViews
from marigold3d.multiview.refine import MIN_SCORE, DepthAccess, Keyframes, Refinement, believed
from marigold3d.poses.sparse import SparseModel
from marigold3d.progress import run as finish
from marigold3d.store import Run
from marigold3d.types import Array, BoolImage, DepthMap, FloatImage, Intrinsics, SparseCues
from marigold3d.video import open_video
from tests import synthetic
from tests.scoring import FAR_M, NEAR_M, Truth, nearest, read_millimetres

EXAMPLE = Path(__file__).resolve().parents[2] / "examples"
RECORDINGS = {"kitchen": (30.0, ()), "hololens": (10.0, ("--intrinsics", "{}/K.txt"))}  # frames a second, options
CUES = 300  # true depths a frame that stand in for points of structure from motion
POINT_MARGIN = 1.25  # the scene reaches so much nearer and farther than its points
SCORED = 20_000  # pixels of a frame that sigma is judged by

Maps = Mapping[int, DepthMap]
"""Depth by row: the number of the keyframe."""


@dataclass(frozen=True, eq=False)
class Case:
    """M keyframes of a clip. T_world_camera (M, 4, 4); rgb: M images; prior: M maps at the size of `camera`.

    truth_m: true depth in metres by row, 0 unmeasured. ranges (M, 2): nearest and farthest depth, as the sparse points
    have it.
    """

    name: str
    camera: Intrinsics
    T_world_camera: Array
    rgb: list[np.ndarray]
    prior: list[DepthMap]
    truth_m: dict[int, FloatImage]
    ranges: Array

    def __len__(self) -> int:
        return len(self.rgb)

    def with_prior(self, prior: list[DepthMap]) -> Case:
        return replace(self, prior=prior)

    def images(self, rows: Sequence[int]) -> Iterator[np.ndarray]:
        return (self.rgb[row] for row in rows)

    def keyframes(self) -> Keyframes:
        median_depth = float(np.median([np.median(p.depth[p.valid]) for p in self.prior]))
        return Keyframes(np.arange(len(self)), self.T_world_camera, self.camera, median_depth)

    @property
    def scored(self) -> list[int]:
        return sorted(self.truth_m)


# -- the code under test ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Refined:
    """What each sweep trusts, what other sweeps agree on, and the finished maps, by row; seconds a keyframe."""

    swept: Maps
    agreed: Maps
    merged: Maps
    sweep_seconds: float
    merge_seconds: float

    @property
    def seconds(self) -> float:
        return self.sweep_seconds + self.merge_seconds


def refined(case: Case, neighbours: int = RefineConfig.neighbours, max_side: int = RefineConfig.max_side) -> Refined:
    """The case's keyframes swept and merged as a run does it, on all cores of the processor."""
    swept: dict[int, Any] = {}
    agreed: dict[int, DepthMap] = {}
    merged: dict[int, DepthMap] = {}
    depths = DepthAccess(
        aligned=case.prior.__getitem__,
        swept=swept.get,
        keep_swept=swept.__setitem__,
        sure=agreed.__getitem__,
        keep_sure=agreed.__setitem__,
        refined=merged.__getitem__,
        keep=lambda row, depth, share: merged.__setitem__(row, depth),
        share=lambda row: None,
    )
    config = RefineConfig(neighbours=neighbours, max_side=max_side)
    steps = Refinement(case.keyframes(), depths, case.images, config)
    began = time.perf_counter()
    finish(steps.sweep())
    between = time.perf_counter()
    finish(steps.confirm())
    finish(steps.merge_keyframes())
    seconds = (between - began) / len(case), (time.perf_counter() - between) / len(case)
    return Refined({row: believed(found) for row, found in swept.items()}, agreed, merged, *seconds)


def matched_with(case: Case, count: int) -> list[list[int]]:
    """The views that the sweep of each keyframe takes."""
    views = MatchingViews.of_depth_maps(case.T_world_camera, case.prior, case.camera)
    return [views.of(row, count) for row in range(len(case))]


# -- where cases come from --------------------------------------------------------------------------------------------


def run_of(name: str, data: Path, runs: Path) -> Run:
    """The finished run of a clip: the one that is there, or a new one through the command line."""
    path = runs / name
    if (path / "run.json").is_file() and Run.open(path).finished:
        return Run.open(path)
    options = [option.format(data / name) for option in RECORDINGS[name][1]] if name in RECORDINGS else []
    command = [sys.executable, "-m", "marigold3d.cli", "video", str(clip_of(name, data)), *options]
    subprocess.run([*command, "-q", "-o", str(path)], check=True)
    return Run.open(path)


def clip_of(name: str, data: Path) -> Path:
    return EXAMPLE / "clip.mp4" if name == "examples" else data / name / "clip.mp4"


def truth_of(name: str, data: Path) -> Truth:
    if name == "examples":
        return Truth.rendered(EXAMPLE / "clip_truth")
    return Truth.recording(data / name, RECORDINGS[name][0])


@dataclass(frozen=True, eq=False)
class Stored(Mapping[int, DepthMap]):
    """Depth that a run keeps under `name`, by position, read when asked for; of a sweep's, the pixels it trusts."""

    run: Run
    name: str

    def _array(self, suffix: str) -> zarr.Array:
        return zarr.open_array(self.run.cache / "arrays.zarr" / (self.name + suffix), mode="r")

    def __getitem__(self, position: int) -> DepthMap:
        z, sigma = np.asarray(self._array("")[position]), np.asarray(self._array("_sigma")[position])
        valid = np.isfinite(z) & (z > 0)
        if self.name == "swept":  # its sigma is relative
            valid &= np.asarray(self._array("_score")[position]) > MIN_SCORE
            sigma = sigma * z
        return DepthMap(np.where(valid, z, 0), valid, np.where(valid, sigma, 0))

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return int(self._array("").shape[0])


def case_of_run(name: str, run: Run, data: Path, most: int | None = None) -> Case:
    """A run's keyframes, cameras and aligned depth, with the truth of those that have one; the first `most` of them."""
    arrays, truth, aligned = run.load_arrays("cameras"), truth_of(name, data), Stored(run, "aligned")
    model = SparseModel.from_arrays(run.load_arrays("points"))
    rows = arrays["keyframes"][:most].tolist()
    T = arrays["T"][rows]
    settings = VideoConfig(max_side=max(model.camera.width, model.camera.height))
    wanted = {p: k for k, p in enumerate(rows)}
    rgb: list[np.ndarray] = [np.empty(0)] * len(rows)
    for position, image in open_video(clip_of(name, data), settings).frames_at(rows, max_side=settings.max_side):
        rgb[wanted[position]] = image
    cues = [model.cues(p, T[k])[0].depth for p, k in wanted.items()]
    ranges = np.array([np.quantile(z, (0.01, 0.99)) if len(z) else (np.nan, np.nan) for z in cues])
    ranges = np.where(np.isfinite(ranges), ranges, np.nanmedian(ranges, axis=0)) * (1 / POINT_MARGIN, POINT_MARGIN)
    seen = {k: truth.depth_m[p] for p, k in wanted.items() if p in truth.depth_m}
    return Case(name, run.camera(), T, rgb, [aligned[p] for p in rows], seen, ranges)


def livingroom(data: Path, most: int | None = None) -> Case:
    """The rendered living room: exact poses and depth; prior: the embedded network, bent to a few true depths."""
    folder = data / "redwood_livingroom1"
    truth = read_millimetres(folder / "depth")
    numbers = sorted(truth)[:most]
    lines = (folder / "test_scene" / "trajectory.log").read_text().splitlines()
    blocks = {
        int(lines[k].split()[0]): np.array([r.split() for r in lines[k + 1 : k + 5]], float)
        for k in range(0, len(lines), 5)
    }
    height, width = truth[numbers[0]].shape
    camera = Intrinsics(525, 525, 320, 240, width, height)
    rgb = [np.array(Image.open(next((folder / "image").glob(f"{n:05d}.*"))).convert("RGB")) for n in numbers]
    estimator, rng = load_estimator(DepthConfig(device="cpu")), np.random.default_rng(0)
    prior, seen = [], {}
    for k, n in enumerate(numbers):
        z = truth[n]
        rows, columns = np.nonzero(z > 0)
        some = rng.permutation(len(rows))[:CUES]
        depth = z[rows[some], columns[some]].astype(float)
        cues = SparseCues(np.stack([columns[some], rows[some]], 1) + 0.5, depth, 0.01 * depth, "truth")
        relative = estimator.estimate(rgb[k][None])[0]
        prior.append(fit_frame(relative, cues).apply(relative))
        seen[k] = z
    ranges = np.array([np.quantile(z[z > 0], (0.01, 0.99)) for z in seen.values()]) * (1 / POINT_MARGIN, POINT_MARGIN)
    return Case("redwood_livingroom1", camera, np.stack([blocks[n] for n in numbers]), rgb, prior, seen, ranges)


def rendered_room(count: int, width: int = 640, height: int = 480) -> Case:
    """A walk of `count` frames through the tests' room; prior: its depth, 20 % bent."""
    clip = synthetic.Clip(synthetic.camera(width, height), synthetic.walk(count))
    prior = [
        DepthMap((z * np.exp(0.2 * synthetic.wave(z.shape))).astype(np.float32), np.ones(z.shape, bool), 0.1 * z)
        for _, z in clip.frames
    ]
    ranges = np.tile([0.5, 6.0], (count, 1))
    truth = {i: z for i, (_, z) in enumerate(clip.frames)}
    return Case("room", clip.camera, clip.T_world_camera, [rgb for rgb, _ in clip.frames], prior, truth, ranges)


# -- priors made worse ------------------------------------------------------------------------------------------------


def disturbed(prior: DepthMap, kind: str, amount: float, seed: int) -> DepthMap:
    """The prior with factors between 1/(1 + amount) and 1 + amount over large regions; sigma is not told of them.

    `kind`: "smooth" waves, "blocks" of a sixth of the width, or "constant": the median everywhere, whose sigma is the
    spread of what it replaces.
    """
    z, shape = prior.depth, prior.depth.shape
    if kind == "constant":
        known = z[prior.valid]
        flat = np.full(shape, np.median(known), np.float32)
        spread = np.std(np.log(known))
        return DepthMap(
            np.where(prior.valid, flat, 0).astype(np.float32), prior.valid, (spread * flat).astype(np.float32)
        )
    rng = np.random.default_rng(seed)
    if kind == "smooth":
        wave = gaussian_filter(rng.standard_normal(shape), shape[1] / 6, mode="reflect")
        level = 2 * wave.ravel().argsort().argsort().reshape(shape) / (wave.size - 1) - 1  # every level as often
    elif kind == "blocks":
        side = max(1, shape[1] // 6)
        coarse = rng.uniform(-1, 1, (-(-shape[0] // side), -(-shape[1] // side)))
        level = np.kron(coarse, np.ones((side, side)))[: shape[0], : shape[1]]
    else:
        raise ValueError(f"unknown disturbance {kind!r}")
    factor = np.exp(np.log1p(amount) * level).astype(np.float32)
    return DepthMap(z * factor, prior.valid, None if prior.sigma is None else prior.sigma * factor)


# -- figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """`scale` brings the maps to metres. Means over frames of each frame's mean; coverage: of the measured pixels."""

    abs_rel: float
    median: float
    delta1: float
    coverage: float
    scale: float

    def cells(self) -> list[str]:
        return [f"{x:.4f}" for x in (self.abs_rel, self.median)] + [f"{x:.3f}" for x in (self.delta1, self.coverage)]


FIGURES = ("AbsRel", "median", "δ1", "coverage")


def pairs(maps: Maps, truth_m: dict[int, FloatImage]) -> Iterator[tuple[Array, Array, Array, float]]:
    """Per frame: estimate, its sigma and truth (K,) where both are known; share of the measured pixels."""
    for row, true in truth_m.items():
        depth = maps[row]
        measured = (true > NEAR_M) & (true < FAR_M)
        both: BoolImage = measured & nearest(depth.valid, true.shape)
        mine, spread = (
            nearest(image, true.shape)[both].astype(float) for image in (depth.depth, depth.sigma_or_typical)
        )
        yield mine, spread, true[both].astype(float), float(both.sum() / max(measured.sum(), 1))


def figures(maps: Maps, truth_m: dict[int, FloatImage]) -> Figures:
    """Of all frames with truth; one scale for the clip: the median of the frames' median ratios."""
    found = list(pairs(maps, truth_m))
    known = [(z, true) for z, _, true, _ in found if len(z)]
    coverage = float(np.mean([share for *_, share in found]))
    if not known:
        return Figures(np.nan, np.nan, np.nan, coverage, np.nan)
    scale = float(np.median([np.median(true / z) for z, true in known]))
    ratios = [scale * z / true for z, true in known]
    abs_rel = float(np.mean([np.abs(r - 1).mean() for r in ratios]))
    median = float(np.mean([np.median(np.abs(r - 1)) for r in ratios]))
    delta1 = float(np.mean([(np.maximum(r, 1 / r) < 1.25).mean() for r in ratios]))
    return Figures(abs_rel, median, delta1, coverage, scale)


@dataclass(frozen=True, eq=False)
class Errors:
    """Pixels of all frames: `error` (K,) |z - truth| / truth, and `share` (K,) sigma / truth."""

    error: Array
    share: Array

    @classmethod
    def of(cls, maps: Maps, truth_m: dict[int, FloatImage]) -> Errors:
        scale, rng = figures(maps, truth_m).scale, np.random.default_rng(0)
        errors, shares = [], []
        for z, sigma, true, _ in pairs(maps, truth_m):
            some = rng.permutation(len(z))[:SCORED]
            errors.append(np.abs(scale * z - true)[some] / true[some])
            shares.append((scale * sigma / true)[some])
        return cls(np.concatenate(errors), np.concatenate(shares))

    def within(self, sigmas: float) -> float:
        """Share of the pixels whose error is at most so many sigmas."""
        return float((self.error <= sigmas * self.share).mean())


def sparsification(error: Array, order_by: Array, fractions: Array) -> Array:
    """(F,) mean of `error` (K,) over the shares `fractions` (F,) of it that are surest: smallest in `order_by` (K,)."""
    running = np.cumsum(error[np.argsort(order_by, kind="stable")]) / np.arange(1, len(error) + 1)
    return running[np.maximum(np.round(np.asarray(fractions) * len(error)).astype(int), 1) - 1]


def sparsification_error(error: Array, order_by: Array) -> tuple[float, float]:
    """Area between the curve by `order_by` (K,) and the ideal one, over shares 0 to 1; and as a share of chance's."""
    fractions = np.linspace(0.01, 1, 100)
    ideal = sparsification(error, error, fractions)
    area = float(np.mean(sparsification(error, order_by, fractions) - ideal))
    chance = float(np.mean(error.mean() - ideal))
    return area, area / chance if chance > 0 else 0.0


def case_title(case: Case) -> str:
    return f"{case.name}: {len(case)} keyframes, {len(case.truth_m)} of them with truth"
