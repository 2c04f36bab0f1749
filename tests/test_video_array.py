"""A clip as an array: whatever order it is indexed in, frame i is the i-th that decoding from the start yields."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from marigold3d.errors import InputError
from marigold3d.video import open_video
from marigold3d.video_array import VideoArray

FRAMES, HEIGHT, WIDTH, FPS = 60, 48, 64, 30
OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-pyramid=normal"}  # frames lean on a later keyframe
CLIPS: dict[str, tuple[str, dict[str, str]]] = {  # file name: codec, its options
    "closed.mp4": ("libx264", {"g": "12", "bf": "3"}),
    "open.mp4": ("libx264", OPEN_GROUPS),
    "open.mov": ("libx264", OPEN_GROUPS),
    "open.mkv": ("libx264", OPEN_GROUPS),
    "open.avi": ("libx264", OPEN_GROUPS),  # has no presentation times
    "one_group.mp4": ("libx264", {"x264-params": "keyint=1000:bframes=3:scenecut=0"}),
    "refreshed.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}),
    "hevc.mp4": ("libx265", {"x265-params": "keyint=12:bframes=4:open-gop=1:log-level=none"}),
    "mpeg4.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "mjpeg.mov": ("mjpeg", {}),
    "hidden_references.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "24"}),
    "vp9.webm": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "24"}),
}


def picture(index: int) -> np.ndarray:
    """A texture that moves, so that no two frames are alike and prediction has something to carry."""
    noise = np.random.default_rng(0).integers(0, 255, (2 * HEIGHT // 8, 4 * WIDTH // 8, 3), np.uint8)
    return np.ascontiguousarray(
        np.kron(noise, np.ones((8, 8, 1), np.uint8))[index % 48 :, 2 * index :][:HEIGHT, :WIDTH]
    )


def write(path: Path, codec: str, options: dict[str, str], times_ms: Sequence[int] | None = None) -> Path:
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=FPS, options=options)
            stream.width, stream.height = WIDTH, HEIGHT
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if times_ms is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for i in range(FRAMES):
                frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
                if times_ms is not None:
                    frame.pts, frame.time_base = times_ms[i], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this FFmpeg has no {codec}")
    return path


def assert_exact(path: Path) -> VideoArray:
    """Every frame, in orders a viewer asks for them, is the one that sequential decoding yields."""
    truth = [frame.rgb for frame in open_video(path).frames()]
    video = VideoArray(path)
    assert len(video) == len(truth)
    at_random = np.random.default_rng(1).integers(0, len(truth), 60).tolist()
    for order in (at_random, range(len(truth) - 1, -1, -7), range(len(truth)), [0, len(truth) - 1, 0]):
        for i in order:
            video._cache.clear()  # so that each frame is decoded, not remembered
            np.testing.assert_array_equal(video[i], truth[i], err_msg=f"frame {i} of {path.name}")
    video.close()
    return video


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_exact_in_any_order(tmp_path: Path, name: str) -> None:
    video = assert_exact(write(tmp_path / name, *CLIPS[name]))
    assert video.shape == (FRAMES, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_frames_are_exact_where_the_rate_varies(tmp_path: Path, suffix: str) -> None:
    steps = np.random.default_rng(2).choice([1, 7, 33, 200, 900], FRAMES)
    assert_exact(write(tmp_path / f"v{suffix}", "libx264", OPEN_GROUPS, np.cumsum(steps).tolist()))


@pytest.mark.parametrize("cut", [5, 17, 30])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_trimmed_clip_starts_where_it_is_shown_from(tmp_path: Path, suffix: str, cut: int) -> None:
    """Cutting without encoding keeps the frames before the cut, with times below zero and an edit list."""
    whole = write(tmp_path / "whole.mp4", *CLIPS["open.mp4"])
    trimmed = tmp_path / f"trimmed{suffix}"
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(whole)) as source, av.open(str(trimmed), "w", options=options) as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        offset = int(cut / FPS / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, copied
                target.mux(packet)
    assert len(assert_exact(trimmed)) in (FRAMES - cut, FRAMES - cut - 1)


def test_a_turned_clip_is_upright(tmp_path: Path) -> None:
    path = write(tmp_path / "r.mp4", *CLIPS["open.mp4"])
    stored = path.read_bytes()
    at = stored.index(b"tkhd") + 4 + 40
    quarter_turn = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    path.write_bytes(stored[:at] + quarter_turn + stored[at + 36 :])
    assert assert_exact(path).shape == (FRAMES, WIDTH, HEIGHT, 3)


@pytest.mark.parametrize("name", ["open.mkv", "vp9.webm", "mpeg4.avi"])
def test_a_clip_that_was_cut_off_shows_what_it_holds(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, *CLIPS[name])
    os.truncate(path, path.stat().st_size * 2 // 3)
    truth = [frame.rgb for frame in open_video(path).frames()]
    video = VideoArray(path)
    assert 0 < len(truth) <= len(video) < FRAMES
    for i in (len(truth) - 1, 0, len(truth) // 2):
        np.testing.assert_array_equal(video[i], truth[i])
    for i in range(len(truth), len(video)):
        with pytest.raises(InputError, match=rf"frame {i} cannot be decoded; copy the file again$"):
            video[i]


@pytest.mark.parametrize("content", [b"", b"no video at all", None], ids=["empty", "text", "cut off"])
def test_unreadable_clips_are_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = write(tmp_path / "clip.mp4", *CLIPS["closed.mp4"])
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(InputError, match=r"clip\.mp4: [^\n]+ it again [^\n]+$") as caught:
        VideoArray(path)
    assert "\n" not in str(caught.value)


def test_indexing_is_numpys(tmp_path: Path) -> None:
    video = VideoArray(write(tmp_path / "clip.mkv", *CLIPS["open.mkv"]))
    whole = np.asarray(video)
    assert whole.shape == video.shape
    for key in (-1, slice(5, 40, 9), (slice(3, 5), 2), (..., 0), (7, slice(None), slice(4, 9), 1), [4, 1]):
        np.testing.assert_array_equal(video[key], whole[key])
    with pytest.raises(IndexError):
        video[FRAMES]
    with pytest.raises(ValueError, match="read-only"):
        video[0][0] = 0
