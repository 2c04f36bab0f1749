"""A large cloud to PLY: time and memory of our writer against Open3D's tensor writer, on the same points.

    python -m tests.benchmarks.ply [--points 5000000] [--rounds 5] [--folder /tmp]

Every measurement is a process of its own that makes the points, then writes them; the writers take turns, and the
median of the rounds counts. `all` is what our clouds hold (position, normal, colour, sigma, observations, frame),
`basic` is position, normal and colour. Our clouds always hold all, so `basic` is Open3D's alone. `s` is wall time of
the call, `CPU s` processor time, `peak MB` the largest resident set of the process, and `more MB` what of it the call
added to what was there before: the copies a writer makes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
WRITERS = ("marigold3d, all", "Open3D, all", "Open3D, basic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where files are written")
    parser.add_argument("--one", choices=WRITERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.points, args.folder)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WRITERS}
    for _ in range(args.rounds):
        for name in WRITERS:
            found[name].append(in_a_process(name, args.points, args.folder))
    print(f"{args.points} points, median of {args.rounds} rounds; ratios are ours over the writer's")
    print(f"{'writer':18s}{'s':>7s}{'CPU s':>7s}{'peak MB':>9s}{'more MB':>9s}{'file MB':>9s}{'ratio s':>9s}{'CPU':>6s}"
          f"{'peak':>6s}")  # fmt: skip
    columns = ("wall_s", "cpu_s", "peak_mb", "more_mb", "file_mb")
    medians = {name: {c: statistics.median(row[c] for row in rows) for c in columns} for name, rows in found.items()}
    ours = medians[WRITERS[0]]
    for name, row in medians.items():
        wall, cpu, peak = (ours[c] / row[c] for c in ("wall_s", "cpu_s", "peak_mb"))
        print(f"{name:18s}{row['wall_s']:7.2f}{row['cpu_s']:7.2f}{row['peak_mb']:9.0f}{row['more_mb']:9.0f}"
              f"{row['file_mb']:9.0f}{wall:9.2f}{cpu:6.2f}{peak:6.2f}")  # fmt: skip


def in_a_process(name: str, points: int, folder: Path) -> dict[str, float]:
    """What `one` measures."""
    command = [sys.executable, "-m", "tests.benchmarks.ply", "--one", name]
    command += ["--points", str(points), "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def one(name: str, points: int, folder: Path) -> dict[str, float]:
    """Make the points and write them once."""
    path = folder / f"benchmark_{points}.ply"
    write = ours(points, path) if name == WRITERS[0] else open3ds(points, path, whole=name == WRITERS[1])
    before_mb, began, cpu = resident_mb(), time.monotonic(), time.process_time()
    write()
    wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale * 1e-6
    file_mb = path.stat().st_size * 1e-6
    path.unlink()
    more_mb = max(peak_mb - before_mb, 0.0)
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak_mb, "more_mb": more_mb, "file_mb": file_mb}


def resident_mb() -> float:
    """What the process holds now; Linux only, else 0."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() * 1e-6 if status.is_file() else 0.0


def columns(points: int) -> dict[str, Any]:
    """The same numbers for every writer."""
    rng = np.random.default_rng(0)
    return {
        "points": rng.standard_normal((points, 3), np.float32),
        "colors": rng.integers(0, 256, (points, 3), np.uint8),
        "normals": rng.standard_normal((points, 3), np.float32),
        "sigma": rng.random(points, np.float32),
        "observations": rng.integers(1, 99, points, np.int32),
        "frame_index": rng.integers(0, 999, points, np.int32),
    }


def ours(points: int, path: Path) -> Any:
    from marigold3d.export.ply import write_ply
    from marigold3d.types import PointCloud

    cloud = PointCloud(**columns(points))
    return lambda: write_ply(path, cloud)


def open3ds(points: int, path: Path, *, whole: bool) -> Any:
    """The arrays are shared with numpy, not copied."""
    import open3d as o3d

    arrays = {name: o3d.core.Tensor.from_numpy(array) for name, array in columns(points).items()}
    cloud = o3d.t.geometry.PointCloud(arrays["points"])
    cloud.point.colors, cloud.point.normals = arrays["colors"], arrays["normals"]
    if whole:
        for name in ("sigma", "observations", "frame_index"):
            cloud.point[name] = arrays[name].reshape((points, 1))
    return lambda: o3d.t.io.write_point_cloud(str(path), cloud, write_ascii=False, compressed=False)


if __name__ == "__main__":
    main()
