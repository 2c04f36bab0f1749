"""The joint alignment of clips beside fits of single frames, on a rendered room with exact truth: Markdown tables.

    python tests/benchmarks/alignment_joint.py [--only accuracy,cost] [--frames 60] [--lengths 125,250,500,1000]

Accuracy: 160x120 maps with a scale and shift of their own each, 3 % smooth distortion and 2 % white noise in log depth;
cues with 1 % noise, gross outliers 1.5 to 4 times too far. `scale`: median over frames of |scale / truth - 1|; `shift`:
of |shift - truth| as a share of the range of y; AbsRel over all pixels; `flicker`: mean over consecutive frames of the
RMS of the median log ratio in a 4 x 3 grid of regions, beside what it truly is: of a camera that stood still. Without
cues AbsRel is that of the poses' own scale, or of a still camera after the clip's one free affine map.
Cost: each length in a process of its own, on one BLAS thread.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from marigold3d.align import fit_affine, fit_frame
from marigold3d.align.alignment import solve_clip
from marigold3d.align.domains import from_domain, to_domain
from marigold3d.types import SparseCues
from tests import synthetic
from tests.joint_clips import DOMAINS, NoisyClip, noisy_clip

Aligned = tuple[np.ndarray, np.ndarray, np.ndarray]  # depth (T, H, W), scale (T,), shift (T,); NaN where there is none


# -- the ways ---------------------------------------------------------------------------------------------------------


def each_frame(fit: Callable[..., tuple[np.ndarray, float, float]]) -> Callable[..., Aligned]:
    """A way that knows one frame at a time; those without cues have the map of the nearest that has some."""

    def align(clip: NoisyClip, cues: dict[int, SparseCues]) -> Aligned:
        depth, scales, shifts = [], [], []
        for i in range(len(clip)):
            near = min(cues, key=lambda other: abs(other - i))
            z, scale, shift = fit(clip.relative[near], cues[near], clip.relative[i])
            depth.append(z)
            scales.append(scale)
            shifts.append(shift)
        return np.stack(depth), np.array(scales), np.array(shifts)

    return align


def least_squares(relative, cues, shown):  # type: ignore[no-untyped-def]
    fit = fit_affine(relative, cues, robust=False)
    return fit.depth(shown.values), fit.scale, fit.shift


def robust_affine(relative, cues, shown):  # type: ignore[no-untyped-def]
    fit = fit_affine(relative, cues)
    return fit.depth(shown.values), fit.scale, fit.shift


def with_field(relative, cues, shown):  # type: ignore[no-untyped-def]
    frame = fit_frame(relative, cues)
    z = frame.apply(shown)
    return np.where(z.valid, z.depth, np.nan), frame.fit.scale, frame.fit.shift


def joint(clip: NoisyClip, cues: dict[int, SparseCues]) -> Aligned:
    alignment = solve_clip(clip.relative, cues, camera=clip.camera, T_world_camera=clip.T_world_camera)
    maps = [alignment.apply(i, r) for i, r in enumerate(clip.relative)]
    fits = [None if f is None else f.fit for f in alignment.frames]
    depth = np.stack([np.where(m.valid, m.depth, np.nan) for m in maps])
    return depth, *(np.array([np.nan if f is None else getattr(f, k) for f in fits]) for k in ("scale", "shift"))


WAYS: dict[str, Callable[..., Aligned]] = {
    "least squares": each_frame(least_squares),
    "robust affine": each_frame(robust_affine),
    "affine and field": each_frame(with_field),
    "joint": joint,
}


# -- accuracy ---------------------------------------------------------------------------------------------------------


def flicker(z: np.ndarray) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.diff(np.log(z), axis=0)
    regions = [c for rows in np.array_split(steps, 3, axis=1) for c in np.array_split(rows, 4, axis=2)]
    return float(np.sqrt(np.nanmean(np.square([np.nanmedian(r, axis=(1, 2)) for r in regions]), axis=0)).mean())


def after_one_affine_map(z: np.ndarray, clip: NoisyClip) -> np.ndarray:
    domain = clip.relative[0].domain
    y, target = to_domain(z.ravel(), domain), to_domain(clip.truth.ravel(), domain)
    good, w = np.isfinite(y) & (y < np.nanpercentile(y, 99.9)), np.ones(y.size)  # a far point alone would tilt the map
    for _ in range(10):
        a, b = np.polyfit(y[good], target[good], 1, w=np.sqrt(w[good]))
        r = np.abs(a * y + b - target)
        w = 1 / np.maximum(r / (1.4826 * np.nanmedian(r)), 1.345)
    out = from_domain(a * to_domain(z, domain) + b, domain)
    return np.where(out > 0, out, np.nan)


def cells(clip: NoisyClip, aligned: Aligned, free: bool) -> str:
    z, scale, shift = aligned
    z = after_one_affine_map(z, clip) if free else np.where(z > 0, z, np.nan)
    range_of_y = np.array([np.ptp(s * r.values) for s, r in zip(clip.scale, clip.relative, strict=True)])
    off = np.nanmedian(np.abs(scale / clip.scale - 1)), np.nanmedian(np.abs(shift - clip.shift) / range_of_y)
    error = float(np.nanmean(np.abs(z / clip.truth - 1)))
    first = "- | -" if free else f"{off[0]:.1%} | {off[1]:.1%}"
    return f"{first} | {error:.4f} | " + (f"{flicker(z):.4f}" if np.ptp(clip.truth, axis=0).max() == 0 else "-")


def accuracy(frames: int) -> None:
    for static in (True, False):
        print(f"### {frames} frames, camera {'still' if static else 'moving'}\n")
        print("| domain | cues | way | scale | shift | AbsRel | flicker |\n|---|---|---|---|---|---|---|")
        for domain in DOMAINS:
            clip = noisy_clip(frames, domain, static=static)
            kinds = {
                "100 in every frame": clip.cues(),
                "the same, 30 % outliers": clip.cues(outliers=0.3),
                "100 in one frame": clip.cues([frames // 2]),
                "none": {},
            }
            for kind, cues in kinds.items():
                for name, way in WAYS.items():
                    if cues or name == "joint":
                        row = cells(clip, way(clip, cues), static and not cues)
                        print(f"| {domain} | {kind} | {name} | {row} |", flush=True)
        print()


# -- time and memory --------------------------------------------------------------------------------------------------


def cost(lengths: list[int]) -> None:
    print("### 100x75 samples a frame, 100 cues each, poses: seconds and peak memory\n")
    print("| frames | seconds | seconds per 1,000 frames | peak GB | of it before the solve |\n|---|---|---|---|---|")
    for count in lengths:
        command = [sys.executable, __file__, "--solve", str(count)]
        seconds, peak, before = map(float, subprocess.check_output(command, text=True).split())
        print(f"| {count} | {seconds:.1f} | {1000 * seconds / count:.1f} | {peak:.2f} | {before:.2f} |", flush=True)
    print()


def solve(count: int) -> None:
    """The room there and back, 100 frames each way."""
    base = noisy_clip(100, "disparity", size=(200, 150))
    at = np.abs((np.arange(count) + 99) % 198 - 99)
    rng = np.random.default_rng(1)
    cues = {}
    for i, k in enumerate(at):
        uv = rng.uniform((0, 0), (200, 150), (100, 2))
        z = base.truth[k][tuple(uv[:, ::-1].astype(int).T)]
        cues[i] = SparseCues(uv, z, 0.01 * z)
    before, start = peak_gb(), time.perf_counter()
    relative = [base.relative[k] for k in at]
    solve_clip(relative, cues, camera=synthetic.camera(200, 150), T_world_camera=base.T_world_camera[at])
    print(time.perf_counter() - start, peak_gb(), before)


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="cost,accuracy")
    parser.add_argument("--frames", type=int, default=60, help="of the accuracy")
    parser.add_argument("--lengths", default="125,250,500,1000", help="frames, of the cost")
    parser.add_argument("--solve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.solve:
        return solve(args.solve)
    if "cost" in args.only:
        cost([int(n) for n in args.lengths.split(",")])
    if "accuracy" in args.only:
        accuracy(args.frames)
    return None


if __name__ == "__main__":
    main()
