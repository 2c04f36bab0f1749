"""Your own relative depth becomes metric.

Alignment works on plain numpy arrays, so the depth may come from any network and the known points from anywhere: a
lidar, an SfM model, a tape measure. Here both are made up, so that the truth is known: a disparity map with an unknown
scale and shift and a smooth error of the kind networks make, and 300 points of which every tenth is wrong.

    python examples/02_align_your_own_depth.py [--points 300] [--seed 0]
"""

from __future__ import annotations

import argparse

import numpy as np

from marigold3d import DepthMap, RelativeDepth, SparseCues, align_frame, fit_affine

WIDTH, HEIGHT = 320, 240
SCALE, SHIFT = 0.5, 0.1  # of the truth: 1 / z = SCALE * value + SHIFT
POINT_SIGMA = 0.01  # relative noise of the known points


def true_depth() -> np.ndarray:
    """(H, W) z in metres: a floor that runs to a wall 5 m away, and a box in front of it."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    below_horizon = np.maximum(rows - HEIGHT / 2, 1e-3)
    z = np.minimum(1.5 * 250 / below_horizon, 5.0)  # camera 1.5 m above the floor, focal length 250 px
    z[100:200, 60:130] = 2.2
    return z + 0.3 * np.sin(columns / 60)


def network_output(z: np.ndarray) -> RelativeDepth:
    """What a disparity network might say: right up to scale, shift and a bend of up to 10 % across the picture."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    bend = 0.1 * np.cos(np.pi * columns / WIDTH) * np.cos(np.pi * rows / HEIGHT)
    values = (1 / (z * np.exp(bend)) - SHIFT) / SCALE
    return RelativeDepth(values.astype(np.float32), "disparity")


def known_points(z: np.ndarray, count: int, rng: np.random.Generator) -> SparseCues:
    """`count` pixels whose depth was measured; every tenth measurement is half or twice what it should be."""
    columns, rows = rng.integers(WIDTH, size=count), rng.integers(HEIGHT, size=count)
    depth = z[rows, columns] * (1 + POINT_SIGMA * rng.normal(size=count))
    depth[::10] *= rng.choice([0.5, 2.0], size=len(depth[::10]))
    uv = np.stack([columns, rows], 1) + 0.5  # (N, 2); pixel centres lie at +0.5
    return SparseCues(uv, depth, POINT_SIGMA * depth, "made up")


def report(name: str, aligned: DepthMap, z: np.ndarray) -> None:
    error = np.abs(aligned.depth - z)[aligned.valid] / z[aligned.valid]
    line = f"{name:24s} mean error {error.mean():6.2%}   median {np.median(error):6.2%}"
    if aligned.sigma is not None:
        line += f"   within two sigma {np.mean(error < 2 * aligned.sigma[aligned.valid] / z[aligned.valid]):4.0%}"
    print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    z = true_depth()
    relative, cues = network_output(z), known_points(z, args.points, np.random.default_rng(args.seed))

    fit = fit_affine(relative, cues)  # robust: the wrong points are found and left out
    print(f"1/z = {fit.scale:.3f} * value + {fit.shift:.3f}, from {fit.inliers.sum()} of {len(cues)} points", end=" ")
    print(f"(before the bend: {SCALE} and {SHIFT}; {len(cues) - len(cues.depth[::10])} are good)")
    report("scale and shift", fit.apply(relative), z)
    report("with the scale field", align_frame(relative, cues), z)  # takes the bend out as well


if __name__ == "__main__":
    main()
