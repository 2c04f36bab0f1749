"""How good the camera path of finished runs is: ATE, RPE, checked with evo where it is installed, and seconds a frame.

    python tests/benchmarks/poses.py RUN TRUTH [RUN TRUTH ...] [--fps 30]

TRUTH holds poses_c2w.npy (frames, 4, 4; camera to world, metres) of a clip of `--fps`. One similarity is fitted.
ATE is the root mean square distance of the camera centres, RPE that of the motion over a second (Sturm et al., IROS
2012, eq. 2 and 6). "at best delay" lets the truth be late or early against the pictures by one constant, as a pose
sensor may be.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # a script sees its own folder only

from marigold3d.rigid import interpolate, inverse, umeyama  # noqa: E402
from marigold3d.store import Run  # noqa: E402
from marigold3d.types import Array, Trajectory  # noqa: E402

LARGEST_DELAY_S = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN TRUTH")
    parser.add_argument("--fps", type=float, nargs="+", default=[30.0], help="of the truth, one or one a run")
    args = parser.parse_args()
    pairs = list(zip(args.paths[::2], args.paths[1::2], strict=True))
    rates = args.fps * len(pairs) if len(args.fps) == 1 else args.fps
    print("| run | frames | path, m | ATE, cm | at best delay | RPE over 1 s, cm and degrees | evo | s a frame |")
    print("|---|---|---|---|---|---|---|---|")
    for (folder, truth), fps in zip(pairs, rates, strict=True):
        print(row(Run.open(folder), np.load(truth / "poses_c2w.npy").astype(float), fps), flush=True)


def row(run: Run, T_true: Array, fps: float) -> str:
    """A run's line of the table; T_true (N, 4, 4) of all frames of the clip."""
    path, times_s = run.trajectory(), np.arange(len(T_true)) / fps
    nearest = np.abs(times_s - path.timestamps_s[:, None]).argmin(1)
    length_m = np.linalg.norm(np.diff(T_true[:, :3, 3], axis=0), axis=1).sum()
    found, true = aligned(path.T_world_camera, T_true[nearest]), T_true[nearest]
    delay_s, ate_delayed = best_delay(path, times_s, T_true)
    shift_m, turn_deg = rpe(found, true, path.timestamps_s)
    seconds = run.manifest["report"]["seconds"]
    spent = seconds.get("poses", 0.0) + seconds.get("odometry", 0.0)
    return (
        f"| {run.path.name} | {len(path)} of {len(T_true)} | {length_m:.1f} | {100 * ate(found, true):.2f} "
        f"| {100 * ate_delayed:.2f} ({1000 * delay_s:+.0f} ms) | {100 * shift_m:.2f}, {turn_deg:.2f} "
        f"| {by_evo(found, true, path.timestamps_s)} | {spent / len(path):.2f} |"
    )


def aligned(T: Array, T_true: Array) -> Array:
    """Poses (N, 4, 4) carried over to the truth by the best similarity of their centres."""
    return umeyama(T[:, :3, 3], T_true[:, :3, 3]).apply_to_poses(T)


def ate(T: Array, T_true: Array) -> float:
    return float(np.sqrt(((T[:, :3, 3] - T_true[:, :3, 3]) ** 2).sum(1).mean()))


def best_delay(path: Trajectory, times_s: Array, T_true: Array) -> tuple[float, float]:
    """By how many seconds the truth is to be read later to fit best, and the ATE then, without the clip's ends."""
    inner = (path.timestamps_s >= times_s[0] + LARGEST_DELAY_S) & (path.timestamps_s <= times_s[-1] - LARGEST_DELAY_S)

    def ate_at(delay_s: float) -> float:
        true = interpolate(times_s, T_true, path.timestamps_s[inner] + delay_s)
        return ate(aligned(path.T_world_camera[inner], true), true)

    best = minimize_scalar(ate_at, bounds=(-LARGEST_DELAY_S, LARGEST_DELAY_S), method="bounded")
    return float(best.x), float(best.fun)


def rpe(T: Array, T_true: Array, times_s: Array, over_s: float = 1.0) -> tuple[float, float]:
    """Root mean square error of the motion over a time: metres, degrees."""
    later = np.searchsorted(times_s, times_s + over_s - 1e-6)
    first = np.flatnonzero(later < len(times_s))
    later = later[first]
    error = inverse(inverse(T_true[first]) @ T_true[later]) @ inverse(T[first]) @ T[later]
    cosine = np.clip((np.einsum("nii->n", error[:, :3, :3]) - 1) / 2, -1, 1)
    shift = np.sqrt((error[:, :3, 3] ** 2).sum(1).mean())
    return float(shift), float(np.degrees(np.sqrt((np.arccos(cosine) ** 2).mean())))


def by_evo(T: Array, T_true: Array, times_s: Array) -> str:
    """ATE and RPE over about a second by evo, in the same units; "-" where it is not installed."""
    try:
        from evo.core import metrics
        from evo.core.trajectory import PoseTrajectory3D
    except ImportError:
        return "-"
    both = tuple(PoseTrajectory3D(poses_se3=list(poses), timestamps=times_s) for poses in (T_true, T))
    absolute = metrics.APE(metrics.PoseRelation.translation_part)
    absolute.process_data(both)
    step = max(1, round(1.0 / float(np.median(np.diff(times_s)))))
    relative = metrics.RPE(metrics.PoseRelation.translation_part, delta=step, all_pairs=True)
    relative.process_data(both)
    rmse = (100 * m.get_statistic(metrics.StatisticsType.rmse) for m in (absolute, relative))
    return ", ".join(f"{value:.2f}" for value in rmse)


if __name__ == "__main__":
    main()
