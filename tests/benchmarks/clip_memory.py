"""Peak memory of a command against the length of its clip: it should not grow.

    python -m tests.benchmarks.clip_memory [CLIP] [--command depth|video|scene] [--lengths 250 2500] [--size 320x240]

The clip (examples/clip.mp4 unless given) is repeated to each length. `video` takes the camera for one that stood still;
`scene` plays the example to and fro with its true camera path, and refines and fuses it. Every length is a process of
its own, as a user starts it; its peak is the largest resident set that the system saw. The network looks at a low
resolution, which makes frames come fast and changes nothing about what could grow with their number.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.depth_to_disk import FPS, ROOT, repeat_clip

OPTIONS = {
    "depth": ("--format", "npz,png16,preview,video"),
    "video": ("--static", "--fov", "65", "--no-refine", "--max-side", "320"),
    "scene": ("--metric-poses", "--fuse"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", nargs="?", type=Path, default=ROOT / "examples" / "clip.mp4")
    parser.add_argument("--command", choices=OPTIONS, default="depth")
    parser.add_argument("--lengths", type=int, nargs="+", default=[250, 2500])
    parser.add_argument("--size", default="320x240")
    args = parser.parse_args()
    width, height = (int(n) for n in args.size.split("x"))
    print(f"marigold3d {args.command}, {width}x{height}\n{'frames':>8s}{'peak MB':>10s}{'ratio':>8s}{'s':>8s}")
    first_mb = 0.0
    for length in args.lengths:
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.mp4"
            repeat_clip(args.clip, clip, length, (width, height), back=args.command == "scene")
            options = true_path(Path(folder), length, width) if args.command == "scene" else []
            peak_mb, seconds = peak(args.command, clip, Path(folder) / "out", options)
        first_mb = first_mb or peak_mb
        print(f"{length:8d}{peak_mb:10.0f}{peak_mb / first_mb:8.3f}{seconds:8.0f}", flush=True)


def true_path(folder: Path, length: int, width: int) -> list[str]:
    """The options that tell the example's camera and its path, to and fro."""
    truth = ROOT / "examples" / "clip_truth"
    camera = json.loads((truth / "camera.json").read_text())
    poses = np.loadtxt(truth / "trajectory.txt")[:, 1:]
    there_and_back = np.concatenate([poses, poses[-2:0:-1]])
    rows = there_and_back[np.arange(length) % len(there_and_back)]
    np.savetxt(folder / "poses.txt", np.column_stack([np.arange(length) / FPS, rows]))
    return ["--poses", str(folder / "poses.txt"), "--focal-px", str(camera["fx"] * width / camera["width"])]


def peak(command: str, clip: Path, out: Path, options: list[str]) -> tuple[float, float]:
    """(largest resident set in megabytes, seconds) of one command."""
    name = "video" if command == "scene" else command
    line = [sys.executable, "-m", "marigold3d.cli", name, str(clip), "-o", str(out), "-q", *options]
    began = time.monotonic()
    with subprocess.Popen([*line, "--processing-resolution", "96", *OPTIONS[command]], cwd=ROOT) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return usage.ru_maxrss * scale * 1e-6, time.monotonic() - began


if __name__ == "__main__":
    main()
