"""`marigold3d depth` from a clip's file to depth on disk: frames a second by format, and what each step costs.

    python -m tests.benchmarks.depth_to_disk [CLIP] [--frames 60] [--size 640x480] [--only FORMATS ...]

The clip (examples/clip.mp4 unless given) is scaled and repeated to the wanted size and length. Every row is a process
of its own, as a user starts it, less one that estimates a single frame, which leaves out the start. `CPU` is processor
time a frame: frames come at most at cores / CPU, however busy the machine was that measured. The steps are timed one by
one, on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

FPS = 25
ROOT = Path(__file__).resolve().parents[2]
ROWS = ("npz,video", "npy", "npz", "png16", "exr", "preview", "video")  # the first is the default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", nargs="?", type=Path, default=ROOT / "examples" / "clip.mp4")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--only", nargs="*", default=ROWS)
    args = parser.parse_args()
    width, height = (int(n) for n in args.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        repeat_clip(args.clip, clip, args.frames, (width, height))
        print(f"{width}x{height}, {args.frames} frames, {os.cpu_count()} cores")
        steps(clip)
        print(f"\n{'format':14s}{'frames/s':>10s}{'CPU ms':>9s}{'at most':>9s}{'MB':>8s}")
        for row in args.only:
            first = run_depth(clip, Path(folder) / "one", row, frames=1)
            whole = run_depth(clip, Path(folder) / "out", row, frames=args.frames)
            wall_s, cpu_s, size_mb = ((w - f) / (args.frames - 1) for w, f in zip(whole, first, strict=True))
            most = (os.cpu_count() or 1) / cpu_s
            print(f"{row:14s}{1 / wall_s:10.1f}{1e3 * cpu_s:9.0f}{most:9.1f}{size_mb:8.2f}", flush=True)


def repeat_clip(source: Path, target: Path, frames: int, size: tuple[int, int], *, back: bool = False) -> None:
    """`frames` frames of `size` (width, height), from a clip played again and again; with `back`, to and fro."""
    import av

    with av.open(str(source)) as container:
        pictures = [p.reformat(*size, "yuv420p") for p in islice(container.decode(video=0), 240)]
    if back:
        pictures += pictures[-2:0:-1]
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i, picture in enumerate(islice(cycle(pictures), frames)):
            picture.pts, picture.time_base, picture.pict_type = i, Fraction(1, FPS), 0
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def run_depth(clip: Path, out: Path, formats: str, frames: int) -> tuple[float, float, float]:
    """(seconds at work, CPU seconds of the process, megabytes written) of one command."""
    options = ["--format", formats, "--max-frames", str(frames), "--overwrite", "--json", "-q"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "marigold3d.cli", "depth", str(clip), "-o", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(json.loads(done.stdout)["seconds"]), cpu_s, 1e-6 * written


def steps(clip: Path) -> None:
    """Print what each step takes, in milliseconds of one core a frame."""
    import torch

    from marigold3d.config import DepthConfig
    from marigold3d.depth import compact, load_estimator
    from marigold3d.depth_files.maps import MapFiles, Span, write_map
    from marigold3d.export.preview import paint_depth
    from marigold3d.video import open_video, video_writer

    torch.set_num_threads(1)
    began = time.process_time()
    frames = [frame.rgb for frame in islice(open_video(clip).frames(), 16)]
    print(f"  {'decode':18s}{1e3 * (time.process_time() - began) / len(frames):7.1f} ms")

    estimator: Any = load_estimator(DepthConfig(device="cpu"))
    spent = {"upsampling": 0.0}
    original = compact.joint_bilateral

    def timed(*args: Any) -> Any:
        start = time.thread_time()
        result = original(*args)
        spent["upsampling"] += time.thread_time() - start
        return result

    compact.joint_bilateral = timed
    estimator._estimate_one(frames[0][None])
    spent["upsampling"], start = 0.0, time.thread_time()
    depths = [estimator._estimate_one(rgb[None])[0] for rgb in frames[:8]]
    whole = time.thread_time() - start
    compact.joint_bilateral = original
    print(f"  {'network':18s}{1e3 * (whole - spent['upsampling']) / 8:7.1f} ms")
    print(f"  {'upsampling':18s}{1e3 * spent['upsampling'] / 8:7.1f} ms")

    span, rgb = Span.of_clip(Span.of(d) for d in depths), frames[0]
    _print_step("range", lambda: Span.of(depths[0]))
    with tempfile.TemporaryDirectory() as folder:
        files = MapFiles.of_image(Path(folder), "x")
        for form in ("npy", "npz", "png16", "exr", "preview"):
            _print_step(f"write {form}", lambda form=form: write_map(files, depths[0], [form], span, "Spectral"))
        _print_step("paint a video frame", lambda: np.hstack((rgb, paint_depth(depths[0], span.shown))))
        pictures = [np.hstack((p, paint_depth(d, span.shown))) for p, d in zip(frames, depths, strict=False)]
        start = time.process_time()
        with video_writer(Path(folder) / "x.mp4", 25, preset="veryfast") as add:
            for picture in 4 * pictures:
                add(picture)
        print(f"  {'encode the video':18s}{1e3 * (time.process_time() - start) / (4 * len(pictures)):7.1f} ms")


def _print_step(name: str, work: Callable[[], object]) -> None:
    times = []
    for _ in range(5):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    print(f"  {name:18s}{1e3 * float(np.median(times)):7.1f} ms", flush=True)


if __name__ == "__main__":
    main()
