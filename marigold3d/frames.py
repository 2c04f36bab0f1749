"""What a source of frames is, and which of its frames a `VideoConfig` uses; `video` and `images` implement it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .config import VideoConfig
from .errors import InputError, UsageError
from .types import Frame

T = TypeVar("T")

CLOCK_TICK_S = 1e-6  # timestamps this close are the same moment


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What is known of a source before it is read.

    width, height: pixels, upright (after the display rotation); fps: average; frame_count: of the whole source, as its
    header says (None: unknown); duration_s: 0.0 when unknown; exif_focal_35mm: 35 mm equivalent focal length in mm,
    of photos only.
    """

    path: Path
    width: int
    height: int
    fps: float
    frame_count: int | None
    duration_s: float
    exif_focal_35mm: float | None = None


class VideoSource(ABC):
    """A one-way stream of frames that can be read again: each `frames()` decodes anew, one frame in memory at a time.

    `warnings` holds one line for each thing the user should know; `frames()` may add to it.
    """

    def __init__(self, info: VideoInfo, config: VideoConfig) -> None:
        self.info = info
        self.config = config
        self.warnings: list[str] = []

    @abstractmethod
    def frames(self, *, max_side: int | None = None) -> Iterator[Frame]:
        """The frames `config` selects, longest side at most `max_side` pixels (None: full size).

        `Frame.index` counts the frames of the whole source; `Frame.timestamp_s` runs from its first frame.
        Raises InputError when not one frame can be had.
        """

    @property
    def names(self) -> tuple[str, ...] | None:
        """File names of all the source's frames, by `Frame.index`; None for a clip."""
        return None

    def frames_at(
        self, positions: Iterable[int], *, max_side: int | None = None
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(position, rgb) of some of the frames that `frames()` yields, in order; decoding ends after the last one."""
        wanted = set(positions)
        last = max(wanted, default=-1)
        for position, frame in enumerate(self.frames(max_side=max_side)):
            if position in wanted:
                yield position, frame.rgb
            if position >= last:
                return

    def size(self, max_side: int | None = None) -> tuple[int, int]:
        """(width, height) of the frames that `frames(max_side=max_side)` yields."""
        return reduced_size(self.info.width, self.info.height, max_side)

    def expected_frames(self) -> int | None:
        """About how many frames `frames()` will yield; None when the source does not say."""
        info, config = self.info, self.config
        if not info.frame_count:
            return None
        end_s = min(info.duration_s, math.inf if config.end_s is None else config.end_s + 1 / info.fps)
        in_range = max(1, min(info.frame_count, round((end_s - config.start_s) * info.fps)))
        step = max(1.0, info.fps / config.fps) if config.fps else config.stride
        return min(math.ceil(in_range / step), config.max_frames or in_range)


def reduced_size(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """(width, height) with the longest side at most `max_side` and the aspect kept; never enlarged."""
    if max_side is None or max(width, height) <= max_side:
        return width, height
    scale = max_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def check_range(config: VideoConfig, path: Path, duration_s: float = 0.0) -> None:
    """Raise UsageError for settings that make no sense, InputError for a start beyond the clip's end."""
    for name, value in (("stride", config.stride), ("fps", config.fps), ("max_frames", config.max_frames)):
        if value is not None and not value > 0:
            raise UsageError(f"{name} must be positive, got {value}")
    if not config.start_s >= 0:
        raise UsageError(f"start must not be negative, got {config.start_s} s")
    if config.end_s is not None and config.end_s < config.start_s:
        raise UsageError(f"the end ({config.end_s} s) lies before the start ({config.start_s} s): swap or drop one")
    if duration_s and config.start_s >= duration_s:
        raise InputError(
            f"{path}: it lasts {duration_s:.2f} s, so nothing is left after {config.start_s:g} s: start earlier"
        )


def select(
    timeline: Iterable[tuple[int, float, T]], config: VideoConfig, info: VideoInfo
) -> Iterator[tuple[int, float, T]]:
    """Those (index, timestamp_s, item) of `timeline` that lie in the range, thinned; InputError when none does."""
    in_range = _in_range(timeline, config)
    thinned = _at_rate(in_range, config.fps, info.fps) if config.fps else islice(in_range, 0, None, config.stride)
    empty = True
    for entry in islice(thinned, config.max_frames):
        empty = False
        yield entry
    if empty:
        end = "the end" if config.end_s is None else f"{config.end_s:g} s"
        raise InputError(f"{info.path}: no frame lies between {config.start_s:g} s and {end}: widen the range")


def _in_range(timeline: Iterable[tuple[int, float, T]], config: VideoConfig) -> Iterator[tuple[int, float, T]]:
    for entry in timeline:
        if config.end_s is not None and entry[1] > config.end_s + CLOCK_TICK_S:
            return
        if entry[1] >= config.start_s - CLOCK_TICK_S:
            yield entry


def _at_rate(timeline: Iterable[tuple[int, float, T]], fps: float, source_fps: float) -> Iterator[tuple[int, float, T]]:
    """The first entry in each 1/fps of time; a quarter of a frame early is forgiven, as clocks are rounded."""
    first_s, last_slot, forgiven = None, -1, 0.25 * min(1.0, fps / source_fps)
    for entry in timeline:
        first_s = entry[1] if first_s is None else first_s
        slot = math.floor((entry[1] - first_s) * fps + forgiven)
        if slot > last_slot:
            last_slot = slot
            yield entry
