"""Clips in and out: any file FFmpeg decodes, a folder of images or a glob becomes a stream of upright RGB `Frame`s.

Frames are decoded one after another from the first, so memory does not grow with the clip, and `Frame.index` is exact
even where the frame rate varies. Pixels are taken as square. Only this module knows PyAV.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation
from numpy.typing import NDArray

from .atomic import atomic_path
from .config import VideoConfig
from .errors import InputError, OutputError
from .frames import VideoInfo, VideoSource, check_range, select
from .images import IMAGE_SUFFIXES, open_images
from .lens import Lens, UndistortedVideo
from .types import Frame

__all__ = ["VideoFile", "VideoInfo", "VideoSource", "open_video", "video_writer", "write_video"]

av.logging.set_level(None)  # FFmpeg must not write on the user's terminal

UNTAGGED_BT709_HEIGHT = 720  # players take untagged clips of this height and more for BT.709, smaller ones for BT.601
WRITTEN_SUFFIXES = (".mp4", ".mov", ".mkv")
CLOCK_PROBE_FRAMES = 24  # frames decoded on opening to see whether the timestamps run forward
SCALER = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def open_video(source: str | Path, config: VideoConfig = VideoConfig()) -> VideoSource:  # noqa: B008 (frozen)
    """Open a clip, a folder of images, one image or a glob of images; its frames undistorted where `config` has a lens.

    Raises InputError when it cannot be read, UsageError when the range in `config` makes no sense.
    """
    opened = _opened_source(source, config)
    return opened if config.lens is None else UndistortedVideo(opened, Lens.parse(config.lens))


def _opened_source(source: str | Path, config: VideoConfig) -> VideoSource:
    path = Path(source)
    if (
        path.is_dir()
        or path.suffix.lower() in IMAGE_SUFFIXES
        or (not path.exists() and any(c in str(source) for c in "*?["))
    ):
        return open_images(path, config)
    if not path.exists():
        raise InputError(
            f"{path}: no such file; give a video, a folder of images or a quoted pattern such as 'img*.png'"
        )
    return VideoFile(path, config)


class VideoFile(VideoSource):
    """A clip decoded by FFmpeg. The first frame is decoded on opening, so a broken file is refused at once."""

    def __init__(self, path: Path, config: VideoConfig) -> None:
        super().__init__(_probe(path), config)
        # Some writers store decoding times as presentation times; shown in order, these go to and fro.
        times = [t for d in islice(_decode(path, []), CLOCK_PROBE_FRAMES) if (t := presentation_s(d)) is not None]
        self._clock = decoding_s if any(b < a for a, b in pairwise(times)) else presentation_s
        check_range(config, path, self.info.duration_s)

    def frames(self, *, max_side: int | None = None) -> Iterator[Frame]:
        width, height = self.size(max_side)
        for index, time_s, decoded in select(self._timeline(), self.config, self.info):
            yield Frame(index, time_s, _upright_rgb(decoded, width, height))

    def _timeline(self) -> Iterator[tuple[int, float, Any]]:
        """(index, timestamp_s, decoded frame) of the whole clip, timestamps made strictly increasing."""
        damaged: list[str] = []
        index, previous_s, origin_s = -1, -1 / self.info.fps, 0.0
        for index, decoded in enumerate(_decode(self.info.path, damaged)):
            clock_s = self._clock(decoded)
            if index == 0:
                origin_s = clock_s or 0.0
            if clock_s is None or clock_s - origin_s <= previous_s:  # missing, or set back where clips were spliced
                clock_s = origin_s + previous_s + 1 / self.info.fps
            previous_s = clock_s - origin_s
            yield index, previous_s, decoded
        self._warn_if_short(index + 1, damaged)

    def _warn_if_short(self, decoded: int, damaged: list[str]) -> None:
        """One line when packets were damaged, or clearly fewer frames came than the header promises."""
        promised = self.info.frame_count or 0
        if damaged or decoded < 0.98 * promised - 2:
            of = f" of {promised}" if promised else ""
            cause = damaged[0] if damaged else "it ends early"
            line = (
                f"{self.info.path}: damaged ({cause}); {decoded}{of} frames could be decoded, the others are left out"
            )
            if line not in self.warnings:
                self.warnings.append(line)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, video stream) of a clip; InputError when there is none."""
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable video ({_reason(error)}); if it was cut off while recording or copying, "
            "copy it again or re-encode it with ffmpeg"
        ) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise InputError(f"{path}: it has no video stream; give a file with moving pictures")
        streams[0].thread_type = "AUTO"
        yield container, streams[0]


def _decode(path: Path, damaged: list[str]) -> Iterator[Any]:
    """Every frame that decodes, in presentation order; each packet that does not adds its reason to `damaged`."""
    with _opened(path) as (container, stream):
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, OSError) as error:  # the container itself breaks off here
                damaged.append(_reason(error))
                return
            try:
                decoded = packet.decode()
            except (av.FFmpegError, ValueError) as error:
                damaged.append(_reason(error))
                continue
            yield from decoded


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0].lower()


def _probe(path: Path) -> VideoInfo:
    """Header facts, and the upright size of the first frame."""
    first = next(_decode(path, []), None)
    with _opened(path) as (container, stream):
        if first is None or stream.codec_context.width == 0:
            raise InputError(f"{path}: no frame can be decoded; copy the file again or re-encode it with ffmpeg")
        duration_s = _duration_s(container, stream)
        fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        count = stream.frames or round(duration_s * fps) or None
    turned = _quarter_turns(first) % 2 == 1
    width, height = (first.height, first.width) if turned else (first.width, first.height)
    return VideoInfo(path, width, height, fps, count, duration_s or (count or 0) / fps)


def _duration_s(container: Any, stream: Any) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def presentation_s(decoded: Any) -> float | None:
    """When a decoded frame is to be shown, seconds on the container's clock."""
    return None if decoded.pts is None else float(decoded.pts * decoded.time_base)


def decoding_s(decoded: Any) -> float | None:
    """When the packet that released a decoded frame was to be decoded: later by a constant, but always in order."""
    return None if decoded.dts is None else float(decoded.dts * decoded.time_base)


def _quarter_turns(decoded: Any) -> int:
    """Counter-clockwise quarter turns that make a decoded frame upright, from its display matrix."""
    return int(round(decoded.rotation / 90) % 4)


def _upright_rgb(decoded: Any, width: int, height: int) -> NDArray[np.uint8]:
    """uint8 sRGB (height, width, 3) of a decoded frame in any pixel format, turned upright and resized by area."""
    turns = _quarter_turns(decoded)
    stored_width, stored_height = (height, width) if turns % 2 else (width, height)
    matrix = decoded.colorspace
    if matrix not in set(Colorspace):
        matrix = Colorspace.ITU709 if decoded.height >= UNTAGGED_BT709_HEIGHT else Colorspace.ITU601
    rgb = decoded.reformat(stored_width, stored_height, "rgb24", src_colorspace=matrix, interpolation=SCALER)
    return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), turns))


def write_video(path: str | Path, frames_rgb: Iterable[NDArray[np.uint8]], fps: float) -> None:
    """Write uint8 RGB frames (H, W, 3) of one size as H.264, yuv420p; odd sizes lose their last row or column.

    Raises OutputError when the file cannot be written.
    """
    with video_writer(path, fps) as add:
        for rgb in frames_rgb:
            add(rgb)


@contextlib.contextmanager
def video_writer(
    path: str | Path, fps: float, *, preset: str = "medium"
) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """A function that adds a frame to the video, which appears when the block ends well; as `write_video`.

    preset: x264's, from "ultrafast" to "veryslow".
    """
    if Path(path).suffix.lower() not in WRITTEN_SUFFIXES:
        raise OutputError(f"{path}: choose a name that ends in {', '.join(WRITTEN_SUFFIXES)}")
    with atomic_path(path) as temporary:
        try:
            with av.open(str(temporary), "w") as container:
                encoder = _Encoder(container, fps, preset)
                yield encoder.add
                encoder.finish()
        except av.FFmpegError as error:
            raise OutputError(f"{path}: cannot be encoded ({_reason(error)}); check the disk and the folder") from error


class _Encoder:
    """The video stream of a container; its size is that of the first frame."""

    def __init__(self, container: Any, fps: float, preset: str) -> None:
        rate, options = Fraction(fps).limit_denominator(1001), {"crf": "18", "preset": preset}
        self._container, self._begun = container, False
        self._stream = container.add_stream("libx264", rate=rate, options=options)
        self._stream.pix_fmt = "yuv420p"

    def add(self, rgb: NDArray[np.uint8]) -> None:
        height, width = rgb.shape[0] // 2 * 2, rgb.shape[1] // 2 * 2  # yuv420p halves the chroma
        if not self._begun:
            self._stream.width, self._stream.height, self._begun = width, height, True
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width]), format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
