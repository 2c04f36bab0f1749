"""Frames of clips by number: VideoArray beside other ways, in time and in frames that are not the one asked for.

    python tests/benchmarks/clip_reader.py [--clips A.mp4 B.mp4] [--count 40]

Truth is what decoding from the start yields, compared as mean absolute difference: converters differ by a level or two,
neighbouring frames by more. napari-pyav and napari-video take part where they can be imported.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from marigold3d.video import open_video
from marigold3d.video_array import VideoArray

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("MARIGOLD3D_DATA", ROOT.parent / "shared" / "data"))
NEAREST = 3  # a frame counts as right when the truth within so many frames that looks most like it is the one asked for
CLEARLY = 0.1  # grey levels: in a clip that hardly moves, converters differ by as much as neighbouring frames

Read = Callable[[int], Any]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = [DATA / "kitchen" / "clip.mp4", DATA / "clips" / "opencv_box.mp4"]
    clips = [ROOT / "examples" / "clip.mp4", *(clip for clip in real if clip.is_file())]
    arguments.add_argument("--clips", type=Path, nargs="+", default=clips)
    arguments.add_argument("--count", type=int, default=40, help="frames read at random, and in sequence")
    given = arguments.parse_args()
    warnings.simplefilter("ignore")  # a peer warns at every frame it misses
    print("| clip | reader | open s | random ms | against ours | step ms | against ours | wrong frames |")
    print("|---|---|---|---|---|---|---|---|")
    for clip in given.clips:
        compare(clip, given.count)


def compare(clip: Path, count: int) -> None:
    truth = [small(frame.rgb) for frame in open_video(clip).frames()]
    at_random = np.random.default_rng(0).integers(0, len(truth), count).tolist()
    start = len(truth) // 3
    in_sequence = list(range(start, min(start + count, len(truth))))
    ours: tuple[float, float] | None = None
    for name, opener in readers():
        began = time.perf_counter()
        read = opener(clip)
        opened_s = time.perf_counter() - began
        random_s, wrong = timed(read, at_random, truth)
        step_s, wrong_steps = timed(opener(clip), in_sequence, truth)
        ours = ours or (random_s, step_s)
        ratios = random_s / ours[0], step_s / ours[1]
        figures = f"{opened_s:.2f} | {1e3 * random_s:.1f} | {ratios[0]:.1f} | {1e3 * step_s:.1f} | {ratios[1]:.1f}"
        print(f"| {clip.parent.name}/{clip.name} | {name} | {figures} | {wrong + wrong_steps} of {2 * count} |")


def timed(read: Read, order: list[int], truth: list[np.ndarray]) -> tuple[float, int]:
    """(seconds a frame, frames that are wrong or missing) of reading in that order."""
    spent, wrong = 0.0, 0
    for index in order:
        began = time.perf_counter()
        try:
            frame = np.asarray(read(index))
        except Exception:  # a peer's failure is a result
            frame = None
        spent += time.perf_counter() - began
        wrong += frame is None or not is_frame(small(frame), index, truth)
    return spent / len(order), wrong


def small(rgb: np.ndarray) -> np.ndarray:
    """A quarter of the size, to hold a clip's truth in memory."""
    return cv2.resize(rgb[..., :3], None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)


def is_frame(found: np.ndarray, index: int, truth: list[np.ndarray]) -> bool:
    """Whether no other frame near is clearly more like what was found than the one asked for."""
    near = range(max(0, index - NEAREST), min(len(truth), index + NEAREST + 1))
    apart = {i: float(np.abs(found.astype(int) - truth[i].astype(int)).mean()) for i in near}
    return apart[index] <= min(apart.values()) + CLEARLY


def readers() -> Iterator[tuple[str, Callable[[Path], Read]]]:
    yield "VideoArray", lambda clip: VideoArray(clip).__getitem__
    yield "PyAV from the start", from_the_start
    yield "OpenCV CAP_PROP_POS_FRAMES", with_opencv
    with suppress(ImportError):
        from napari_pyav._reader import FastVideoReader

        yield "napari-pyav", lambda clip: FastVideoReader(str(clip)).__getitem__
    with suppress(ImportError):
        from napari_video.napari_video import VideoReaderNP

        yield "napari-video", lambda clip: VideoReaderNP(str(clip)).__getitem__


def from_the_start(clip: Path) -> Read:
    def read(index: int) -> np.ndarray:
        with av.open(str(clip)) as container:
            container.streams.video[0].thread_type = "AUTO"
            return next(islice(container.decode(video=0), index, None)).to_ndarray(format="rgb24")

    return read


def with_opencv(clip: Path) -> Read:
    capture = cv2.VideoCapture(str(clip))
    position = [0]

    def read(index: int) -> np.ndarray:
        if index != position[0]:
            capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        there, frame = capture.read()
        position[0] = index + 1
        if not there:
            raise LookupError(index)
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    return read


if __name__ == "__main__":
    main()
