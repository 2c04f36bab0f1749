"""A clip as a lazy (T, H, W, 3) array with exact seeking: frame i is the i-th frame that sequential decoding yields.

A container finds keyframes by time, not by number, and B-frames are stored out of order. So the presentation times of
all packets are read first, without decoding; sorted, they number the frames. Where a clip's times cannot be trusted for
that, or its "keyframes" are no whole pictures but the starts of gradual refreshes, frames are counted by decoding from
the start: slower, as exact.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .lazy import LazyStack
from .video import _opened, _upright_rgb, open_video

TRUSTED_AFTER = 24  # decoded frames whose times must be those the packets promise
SEEK_ATTEMPTS = 3  # keyframes tried before the clip is read from the start
READ_AHEAD = 8  # frames decoded to get forward rather than seeking to a keyframe between
KEPT_BEFORE = 12  # frames before the one asked for that are kept on the way: going back one by one must not decode anew


@dataclass(frozen=True, eq=False)
class _FrameIndex:
    """Presentation times `pts` (T,) of all frames, and those of the keyframes; both increasing.

    Keyframes found to be no whole pictures are taken out of the list.
    """

    pts: list[int]
    keyframes: list[int]

    def shows(self, pts: int) -> bool:
        """Whether a frame of this time is shown: a trimmed clip may start with a keyframe that is not."""
        at = bisect_left(self.pts, pts)
        return at < len(self.pts) and self.pts[at] == pts


class VideoArray(LazyStack):
    """Read-only uint8 sRGB array (T, H, W, 3) over the clip at `path`, upright. InputError when it cannot be read.

    Neighbouring frames decode in sequence, others seek to the keyframe before. `close()` frees the file.
    In a damaged clip frames are numbered by what its packets promise, so numbers may be off behind the damage.
    """

    def __init__(self, path: str | Path) -> None:
        self.info = open_video(path).info
        self._index = _read_index(self.info.path)
        self._next = 0  # position of the frame that `_stream` yields next
        self._files = ExitStack()
        self._stream: Iterator[Any] = iter(())
        self._container: Any = None
        count = len(self._index.pts) if self._index else sum(1 for _ in _decoded_frames(self.info.path))
        super().__init__((count, self.info.height, self.info.width, 3), np.uint8)

    def close(self) -> None:
        """Close the file; indexing opens it again."""
        with self._lock:
            self._files.close()
            self._container, self._stream = None, iter(())

    def _read(self, position: int) -> NDArray[np.uint8]:
        frame = self._counted(position) if self._index is None else self._sought(position, self._index)
        if frame is None:
            raise InputError(f"{self.info.path}: frame {position} cannot be decoded; copy the file again")
        return frame

    def _counted(self, position: int) -> NDArray[np.uint8] | None:
        """The frame, by counting from where the stream stands or from the start."""
        if self._container is None or position < self._next:
            self._restart()
        for decoded in self._stream:
            self._next += 1
            frame = self._kept(self._next - 1, position, decoded)
            if self._next > position:
                return frame
        return None

    def _sought(self, position: int, index: _FrameIndex) -> NDArray[np.uint8] | None:
        """The frame with the time of `position`: read on where that is shorter, else seek, ever earlier."""
        nearest = bisect_right(index.keyframes, index.pts[position]) - 1
        if self._container is not None and position >= self._next:
            same_group = index.keyframes[nearest] <= index.pts[self._next]
            if same_group or position - self._next <= READ_AHEAD:
                frame = self._read_on(position, index)
                if frame is not None:
                    return frame
        for key in range(nearest, max(nearest - SEEK_ATTEMPTS, -1), -1):
            self._seek(index.keyframes[key])
            frame = self._read_on(position, index, entered=index.keyframes[key])
            if frame is not None:
                return frame
        self._restart()
        return self._counted(position)

    def _read_on(self, position: int, index: _FrameIndex, *, entered: int | None = None) -> NDArray[np.uint8] | None:
        """The coming frame `position`; None when the stream is past it, or cannot be `entered` at that keyframe."""
        target, keep_from = index.pts[position], index.pts[max(0, position - KEPT_BEFORE)]
        for decoded in self._stream:
            if entered is not None and not decoded.key_frame and index.shows(entered):
                index.keyframes.remove(entered)  # pictures after it still lean on some before
                break
            entered = None
            if decoded.pts is None or decoded.pts > target:
                break
            at = bisect_left(index.pts, decoded.pts)
            self._next = at + 1
            if decoded.pts == target:
                return self._rgb(decoded)
            if decoded.pts >= keep_from and index.pts[at] == decoded.pts:
                self._keep(at, self._rgb(decoded))
        self._next = len(index.pts) + 1  # where the stream stands is not known: the next frame is sought
        return None

    def _kept(self, at: int, position: int, decoded: Any) -> NDArray[np.uint8] | None:
        """The decoded frame `at` as an array where it is `position` or shortly before it, and kept."""
        if at < position - KEPT_BEFORE:
            return None
        frame = self._rgb(decoded)
        self._keep(at, frame)
        return frame

    def _rgb(self, decoded: Any) -> NDArray[np.uint8]:
        return _upright_rgb(decoded, self.info.width, self.info.height)

    def _seek(self, pts: int) -> None:
        if self._container is None:
            self._restart()
        stream = self._video
        try:
            self._container.seek(pts, stream=stream, backward=True, any_frame=False)
        except (av.FFmpegError, OSError):
            self._restart()  # a container that cannot seek is read from the start
            return
        self._stream = _frames_of(self._container, stream)

    def _restart(self) -> None:
        self._files.close()
        self._container, self._video = self._files.enter_context(_opened(self.info.path))
        self._stream, self._next = _frames_of(self._container, self._video), 0


def _read_index(path: Path) -> _FrameIndex | None:
    """Times and keyframes from the packets; None when they do not tell which frame is the i-th."""
    with _opened(path) as (container, stream):
        packets = [(p.pts, p.is_keyframe, p.is_discard) for p in _packets_of(container, stream) if p.size]
    if not packets or any(time is None for time, _, _ in packets):
        return None
    pts = sorted(time for time, _, discarded in packets if not discarded)
    keyframes = sorted(time for time, is_key, _ in packets if is_key)  # a discarded one still starts its group
    first = [decoded.pts for decoded in islice(_decoded_frames(path), TRUSTED_AFTER)]
    trusted = len(set(pts)) == len(pts) and first == pts[: len(first)] and keyframes and keyframes[0] <= pts[0]
    return _FrameIndex(pts, keyframes) if trusted else None


def _decoded_frames(path: Path) -> Iterator[Any]:
    """Every frame that decodes, in presentation order."""
    with _opened(path) as (container, stream):
        yield from _frames_of(container, stream)


def _frames_of(container: Any, stream: Any) -> Iterator[Any]:
    """The frames from where the container stands; packets that do not decode are passed over."""
    for packet in _packets_of(container, stream):
        try:
            yield from packet.decode()
        except (av.FFmpegError, ValueError):
            continue


def _packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """The packets from where the container stands to its end, or to where it breaks off."""
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except (StopIteration, av.FFmpegError, OSError):
            return
