"""First look at a clip: which frames there are, how they move, where scenes are cut, whether anything can be seen.

One pass over small thumbnails, a few numbers a frame; nothing else about the clip is held in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from .config import PoseConfig
from .errors import InputError
from .progress import Progress, Steps
from .types import Array
from .video import VideoSource

THUMBNAIL = 128  # px, longest side
KEYFRAME_SHIFT = 0.03  # image shift since the last keyframe that calls for a new one, share of the width
KEYFRAME_PEAK = 0.30  # phase correlation below this: the view has changed in other ways than a shift
KEYFRAME_GAP_S = 0.5  # a keyframe at least so often
CUT_DISTANCE = 0.2  # change of the colour histogram (0..1) at a cut ...
CUT_CONTRAST = 4.0  # ... and how much larger than around it; a fast pan changes colours steadily, a cut at once
BLACK_LEVEL = 4.0  # mean brightness (0..255) under which a frame shows nothing


@dataclass(frozen=True, eq=False)
class Scan:
    """What the first pass found about the T used frames.

    indices (T,) in the source, timestamps_s (T,), keyframes (M,) positions among the T, cuts: positions that start a
    new scene, image_size: (width, height) at which later stages see the frames, black_share of frames.
    """

    indices: NDArray[np.int64]
    timestamps_s: Array
    keyframes: NDArray[np.int64]
    cuts: NDArray[np.int64]
    image_size: tuple[int, int]
    black_share: float

    def __len__(self) -> int:
        return len(self.indices)

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """For the run's cache."""
        return {**self.__dict__, "image_size": np.array(self.image_size), "black_share": np.array(self.black_share)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Scan:
        size, black = arrays.pop("image_size"), arrays.pop("black_share")
        return cls(**arrays, image_size=(int(size[0]), int(size[1])), black_share=float(black))


def scan_clip(video: VideoSource, max_side: int, config: PoseConfig) -> Steps[Scan]:
    """Decode the clip once at thumbnail size; see `Scan`. InputError when a clip shows nothing."""
    indices, times, brightness, changes = [], [], [], []
    histogram: Array | None = None
    keyframes: list[int] = []
    key_view: NDArray[np.float32] | None = None
    total = video.info.frame_count
    for position, frame in enumerate(video.frames(max_side=THUMBNAIL)):
        gray = frame.rgb.mean(2, dtype=np.float32)
        indices.append(frame.index)
        times.append(frame.timestamp_s)
        brightness.append(float(gray.mean()))
        previous, histogram = histogram, _histogram(frame.rgb)
        if previous is not None:
            changes.append(0.5 * np.abs(histogram - previous).sum())  # total variation
        if key_view is None or _calls_for_keyframe(key_view, gray, times[-1] - times[keyframes[-1]], config):
            keyframes.append(position)
            key_view = gray
        yield Progress("scan", position + 1, total)
    if keyframes[-1] != position:  # no pose can be interpolated beyond the last keyframe
        keyframes.append(position)
    black = np.array(brightness) < BLACK_LEVEL
    if black.all():
        raise InputError(f"{video.info.path}: every frame is black; is the right camera track in this file?")
    return Scan(
        np.array(indices),
        np.array(times),
        _thin(np.array(keyframes), config.max_keyframes),
        find_cuts(np.array(changes)),
        video.size(max_side),
        float(black.mean()),
    )


def find_cuts(distance: Array, window: int = 8) -> NDArray[np.int64]:
    """Positions that start a new scene, from the histogram change (T-1,) between successive frames."""
    cuts = []
    for i in np.flatnonzero(distance > CUT_DISTANCE).tolist():
        around = np.concatenate([distance[max(0, i - window) : i], distance[i + 1 : i + window + 1]])
        if distance[i] > CUT_CONTRAST * (np.median(around) if len(around) else 0.0) + 1e-3:
            cuts.append(i + 1)
    return np.array(cuts, dtype=np.int64)


def scenes(scan: Scan) -> list[tuple[int, int]]:
    """(first, last) positions of every scene."""
    starts = [0, *scan.cuts.tolist()]
    return list(zip(starts, [s - 1 for s in starts[1:]] + [len(scan) - 1], strict=True))


def image_shift(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[float, float]:
    """Shift between two gray images (H, W), as a share of the width, and the phase correlation's peak in 0..1."""
    window = np.outer(np.hanning(a.shape[0]), np.hanning(a.shape[1]))
    A, B = (fft.rfft2((x - x.mean()) * window) for x in (a, b))
    cross = A * np.conj(B)
    correlation = fft.irfft2(cross / (np.abs(cross) + 1e-6), a.shape)
    row, column = np.unravel_index(correlation.argmax(), a.shape)
    dy, dx = (x if x <= n // 2 else x - n for x, n in ((row, a.shape[0]), (column, a.shape[1])))
    return float(np.hypot(dx, dy) / a.shape[1]), float(correlation.max())


def _calls_for_keyframe(
    key: NDArray[np.float32], view: NDArray[np.float32], elapsed_s: float, config: PoseConfig
) -> bool:
    if elapsed_s < 0.999 / config.keyframe_fps:
        return False
    shift, peak = image_shift(key, view)
    return shift >= KEYFRAME_SHIFT or peak < KEYFRAME_PEAK or elapsed_s >= KEYFRAME_GAP_S


def _histogram(rgb: NDArray[np.uint8]) -> Array:
    """Joint colour histogram with 6 levels a channel, sum 1."""
    level = (rgb.reshape(-1, 3) // 43).astype(np.int64)
    counts = np.bincount(level @ np.array([36, 6, 1]), minlength=216)
    return counts / counts.sum()


def _thin(keyframes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of the keyframes, evenly spread."""
    if len(keyframes) <= most:
        return keyframes
    return keyframes[np.linspace(0, len(keyframes) - 1, most).round().astype(int)]


__all__ = ["Scan", "find_cuts", "image_shift", "scan_clip", "scenes"]
