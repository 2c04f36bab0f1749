"""Clips, folders and globs of images as streams of frames."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from marigold3d.config import VideoConfig
from marigold3d.errors import InputError, OutputError, UsageError
from marigold3d.frames import reduced_size
from marigold3d.video import _upright_rgb, open_video, write_video
from tests.data_paths import data_path

FRAMES = 30
QUARTER_TURN_MATRIX = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)  # 90 degrees clockwise
IDENTITY_MATRIX = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def numbered(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture that tells its number by its grey."""
    return np.full((height, width, 3), 8 * index, np.uint8)


def number_of(rgb: np.ndarray) -> int:
    return round(float(rgb.mean()) / 8)


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    fps: int = 10,
    pts: Sequence[int] | None = None,
    pix_fmt: str = "yuv420p",
) -> Path:
    """Encode with two B-frames a group, so that storage order differs from presentation order."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"g": "6", "bf": "2", "crf": "10"})
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, rgb in enumerate(frames):
            if i == 0:
                stream.height, stream.width = rgb.shape[:2]
            picture = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            picture.pts = pts[i] if pts else i * 1000 // fps
            picture.time_base = Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", (numbered(i) for i in range(FRAMES)))


def picked(source: Path, **settings: object) -> list[int]:
    """Indices of the frames used, after checking that each is the picture of that number."""
    frames = list(open_video(source, VideoConfig(**settings)).frames())  # type: ignore[arg-type]
    assert [number_of(f.rgb) for f in frames] == [f.index for f in frames]
    return [f.index for f in frames]


def test_every_frame_once_in_presentation_order(clip: Path) -> None:
    source = open_video(clip)
    frames = list(source.frames())
    assert [number_of(f.rgb) for f in frames] == [f.index for f in frames] == list(range(FRAMES))
    np.testing.assert_allclose([f.timestamp_s for f in frames], np.arange(FRAMES) / 10, atol=1e-3)
    assert (source.info.width, source.info.height, source.info.frame_count) == (64, 48, FRAMES)
    assert source.info.fps == pytest.approx(10)
    assert source.warnings == []


def test_frames_can_be_read_again(clip: Path) -> None:
    source = open_video(clip)
    first, second = list(source.frames()), list(source.frames())
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stride": 7}, [0, 7, 14, 21, 28]),
        ({"max_frames": 3}, [0, 1, 2]),
        ({"start_s": 2.5}, [25, 26, 27, 28, 29]),
        ({"end_s": 0.3}, [0, 1, 2, 3]),
        ({"start_s": 1.0, "end_s": 2.0, "stride": 4}, [10, 14, 18]),
        ({"fps": 2.0}, [0, 5, 10, 15, 20, 25]),
        ({"fps": 5.0, "stride": 3}, list(range(0, 30, 2))),
        ({"fps": 60.0}, list(range(30))),
        ({"start_s": 0.05, "max_frames": 1}, [1]),
    ],
)
def test_range_and_thinning_keep_source_indices(clip: Path, settings: dict[str, float], expected: list[int]) -> None:
    assert picked(clip, **settings) == expected
    estimate = open_video(clip, VideoConfig(**settings)).expected_frames()  # type: ignore[arg-type]
    assert estimate == pytest.approx(len(expected), abs=1)


def test_variable_frame_rate(tmp_path: Path) -> None:
    times_ms = [0, 100, 120, 500, 510, 1000, 1900]
    path = write_clip(tmp_path / "v.mkv", (numbered(i) for i in range(7)), pts=times_ms)
    frames = list(open_video(path).frames())
    np.testing.assert_allclose([f.timestamp_s for f in frames], np.array(times_ms) / 1000, atol=1e-6)
    assert picked(path, fps=2.0) == [0, 3, 5, 6]


def test_timestamps_start_at_the_first_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "v.mkv", (numbered(i) for i in range(4)), pts=[5000, 5100, 5200, 5300])
    np.testing.assert_allclose([f.timestamp_s for f in open_video(path).frames()], [0, 0.1, 0.2, 0.3], atol=1e-6)


def test_decoding_is_lazy_and_stops_early(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from marigold3d import video

    converted = []
    monkeypatch.setattr(video, "_upright_rgb", lambda *a: converted.append(1) or _upright_rgb(*a))
    assert len(list(islice(open_video(clip).frames(), 3))) == 3
    assert len(converted) == 3


def test_display_rotation(tmp_path: Path) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 255  # the stored top left, shown at the top right
    path = write_clip(tmp_path / "r.mp4", [picture] * 4)
    stored = path.read_bytes()
    at = stored.index(b"tkhd") + 4 + 40
    assert stored[at : at + 36] == IDENTITY_MATRIX
    path.write_bytes(stored[:at] + QUARTER_TURN_MATRIX + stored[at + 36 :])
    source = open_video(path)
    frame = next(source.frames())
    assert (source.info.width, source.info.height) == (48, 64)
    assert frame.rgb.shape == (64, 48, 3)
    assert frame.rgb[:30, 26:].mean() > 245
    assert frame.rgb[34:].mean() < 10
    assert next(source.frames(max_side=32)).rgb.shape == (32, 24, 3)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (63, 47), (1, 1), (33, 2)])
@pytest.mark.parametrize("max_side", [None, 20, 1000])
def test_sizes(tmp_path: Path, width: int, height: int, max_side: int | None) -> None:
    path = write_clip(tmp_path / "s.mkv", [numbered(9, height, width)] * 3, pix_fmt="yuv444p")
    source = open_video(path)
    rgb = next(source.frames(max_side=max_side)).rgb
    assert rgb.shape == (*source.size(max_side)[::-1], 3)
    assert source.size(max_side) == reduced_size(width, height, max_side)


def test_reduced_size_keeps_aspect_and_never_enlarges() -> None:
    assert reduced_size(1920, 1080, 640) == (640, 360)
    assert reduced_size(100, 1, 10) == (10, 1)
    assert reduced_size(100, 50, 200) == (100, 50)


WHITE = {"limited": (235, 128, 128), "full": (255, 128, 128)}


@pytest.mark.parametrize(
    ("pix_fmt", "color_range", "values", "rgb"),
    [
        ("yuv420p", 0, (235, 128, 128), (255, 255, 255)),
        ("yuv420p", 1, (16, 128, 128), (0, 0, 0)),
        ("yuv420p", 2, (16, 128, 128), (16, 16, 16)),
        ("yuvj420p", 0, (200, 128, 128), (200, 200, 200)),
        ("yuv422p", 1, (126, 128, 128), (128, 128, 128)),
        ("yuv420p10le", 1, (940, 512, 512), (255, 255, 255)),
        ("yuv444p10le", 2, (512, 512, 512), (128, 128, 128)),
        ("gray", 0, (200,), (200, 200, 200)),
        ("rgb24", 0, (200,), (200, 200, 200)),
    ],
)
def test_pixel_formats(pix_fmt: str, color_range: int, values: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    frame = av.VideoFrame(64, 64, pix_fmt)
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(np.full(plane.buffer_size, value, np.uint8) if max(values) < 256 else _words(plane, value))
    frame.color_range = color_range
    np.testing.assert_allclose(_upright_rgb(frame, 32, 32)[16, 16], rgb, atol=1)


def _words(plane: av.video.plane.VideoPlane, value: int) -> np.ndarray:
    return np.full(plane.buffer_size // 2, value, "<u2")


@pytest.mark.parametrize(("height", "space", "red"), [(480, 2, 601), (1080, 2, 709), (480, 1, 709), (1080, 5, 601)])
def test_untagged_matrix_follows_the_size(height: int, space: int, red: int) -> None:
    frame = av.VideoFrame(64, height, "yuv420p")
    for plane, value in zip(frame.planes, (81, 90, 240), strict=True):  # pure red in BT.601
        plane.update(np.full(plane.buffer_size, value, np.uint8))
    frame.colorspace = space
    green = int(_upright_rgb(frame, 64, height)[9, 9, 1])
    assert green == pytest.approx(0 if red == 601 else 24, abs=3)


def test_truncated_clip_yields_what_it_holds_and_warns_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    path = write_clip(tmp_path / "t.mp4", (rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(FRAMES)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    source = open_video(path)
    for _ in range(2):
        assert 5 < len(list(source.frames())) < FRAMES
    assert len(source.warnings) == 1
    assert "damaged" in source.warnings[0]
    assert "\n" not in source.warnings[0]
    assert capfd.readouterr() == ("", "")


def test_ffmpeg_stays_silent_in_a_fresh_process(tmp_path: Path) -> None:
    path = tmp_path / "t.mp4"
    path.write_bytes(b"not a video at all " * 100)
    code = f"from marigold3d.video import open_video\ntry: open_video({str(path)!r})\nexcept Exception as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_unusable_files_are_refused_in_one_line(tmp_path: Path, clip: Path) -> None:
    text, empty, folder = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "folder"
    text.write_text("hello")
    empty.touch()
    folder.mkdir()
    (tmp_path / "c.mp4").write_bytes(clip.read_bytes()[:200])
    for bad in (
        text,
        empty,
        folder,
        tmp_path / "c.mp4",
        tmp_path / "absent.mp4",
        tmp_path / "img*.png",
        tmp_path / "x.png",
    ):
        with pytest.raises(InputError, match=rf"^{bad.as_posix().replace('*', '[*]')}: [^\n]+$"):
            open_video(bad)


def test_sound_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "s.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="no video stream"):
        open_video(path)


@pytest.mark.parametrize(
    "settings", [{"stride": 0}, {"fps": 0.0}, {"max_frames": 0}, {"start_s": -1.0}, {"end_s": -1.0}]
)
def test_senseless_settings(clip: Path, settings: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        open_video(clip, VideoConfig(**settings))  # type: ignore[arg-type]


def test_ranges_without_frames(clip: Path) -> None:
    with pytest.raises(InputError, match="start earlier"):
        open_video(clip, VideoConfig(start_s=30))
    with pytest.raises(InputError, match="widen"):
        list(open_video(clip, VideoConfig(start_s=0.32, end_s=0.38)).frames())


def test_written_video_reads_back(tmp_path: Path) -> None:
    write_video(tmp_path / "new" / "o.mp4", (numbered(i, 47, 63) for i in range(12)), 12.5)
    frames = list(open_video(tmp_path / "new" / "o.mp4").frames())
    assert [number_of(f.rgb) for f in frames] == list(range(12))
    assert frames[0].rgb.shape == (46, 62, 3)
    assert frames[-1].timestamp_s == pytest.approx(11 / 12.5, abs=1e-3)


def test_video_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_video(tmp_path / "file" / "o.mp4", [numbered(0)], 10)
    with pytest.raises(OutputError):
        write_video(tmp_path / "o.unknown", [numbered(0)], 10)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# -- images -----------------------------------------------------------------------------------------------------------


def save_images(folder: Path, numbers: Iterable[int]) -> Path:
    folder.mkdir(exist_ok=True)
    for i in numbers:
        Image.fromarray(numbered(i)).save(folder / f"img{i}.png")
    return folder


def test_images_in_natural_order(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "f", [10, 2, 1])
    (folder / "notes.txt").touch()
    for source in (folder, folder / "img*.png", str(folder / "img*")):
        frames = list(open_video(source).frames())
        assert [number_of(f.rgb) for f in frames] == [1, 2, 10]
        assert [(f.index, f.timestamp_s) for f in frames] == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_fps_of_images_is_their_clock(tmp_path: Path) -> None:
    source = open_video(save_images(tmp_path / "f", range(6)), VideoConfig(fps=4.0, stride=2, start_s=0.25))
    assert source.expected_frames() == 3
    assert source.names is not None
    assert source.names[3] == "img3.png"
    assert [(f.index, f.timestamp_s) for f in source.frames()] == [(1, 0.25), (3, 0.75), (5, 1.25)]


def test_one_image_is_a_clip(tmp_path: Path) -> None:
    assert len(list(open_video(save_images(tmp_path / "f", [3]) / "img3.png").frames())) == 1


def test_exif_rotation_and_focal_length(tmp_path: Path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20, :30] = 255
    exif = Image.Exif()
    exif[274] = 6  # shown after a quarter turn clockwise
    exif.get_ifd(0x8769)[41989] = 26
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif, quality=95)
    source = open_video(tmp_path)
    rgb = next(source.frames()).rgb
    assert (source.info.width, source.info.height, source.info.exif_focal_35mm) == (40, 60, 26.0)
    assert rgb.shape == (60, 40, 3)
    assert rgb[:25, 22:].mean() > 250
    assert next(source.frames(max_side=30)).rgb.shape == (30, 20, 3)


def test_image_kinds(tmp_path: Path) -> None:
    grey16 = np.full((8, 8), 200 * 257, np.uint16)
    kinds = {
        "16.png": Image.fromarray(grey16),
        "grey.png": Image.new("L", (8, 8), 200),
        "alpha.png": Image.new("RGBA", (8, 8), (200, 200, 200, 30)),
        "palette.png": Image.new("RGB", (8, 8), (200, 200, 200)).quantize(),
        "la.png": Image.new("LA", (8, 8), (200, 255)),
        "cmyk.tif": Image.new("CMYK", (8, 8), (55, 55, 55, 0)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        assert next(open_video(tmp_path / name).frames()).rgb.tolist() == np.full((8, 8, 3), 200).tolist(), name


def test_images_of_two_sizes_name_the_file(tmp_path: Path) -> None:
    save_images(tmp_path, [1, 2])
    Image.new("RGB", (9, 9)).save(tmp_path / "img3.png")
    with pytest.raises(InputError, match=r"img3\.png: 9x9, but img1\.png is 64x48"):
        open_video(tmp_path)


def test_damaged_images(tmp_path: Path) -> None:
    save_images(tmp_path, [1])
    whole = (tmp_path / "img1.png").read_bytes()
    (tmp_path / "img1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"img1\.png: cannot be read"):
        list(open_video(tmp_path).frames())
    (tmp_path / "img1.png").write_text("no image")
    with pytest.raises(InputError, match="not an image"):
        open_video(tmp_path)


# -- real recordings --------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "size", "count", "last_s"),
    [
        ("clips/bikes.mp4", (640, 272), 250, 9.96),
        ("clips/carphone_pristine.mp4", (176, 144), 120, 3.971),
        ("clips/robot_unitree.mp4", (1024, 576), 174, 3.46),
        ("clips/opencv_box.mp4", (640, 480), 455, 15.15),  # its writer stored decoding times as presentation times
        ("kitchen/clip.mp4", (640, 480), 240, 7.967),
    ],
)
def test_real_clips(name: str, size: tuple[int, int], count: int, last_s: float) -> None:
    source = open_video(data_path(name))
    indices, times_s = [], []
    for frame in source.frames(max_side=80):
        indices.append(frame.index)
        times_s.append(frame.timestamp_s)
    assert (source.info.width, source.info.height) == size
    assert indices == list(range(count))
    assert np.all(np.diff(times_s) > 0)
    assert times_s[-1] == pytest.approx(last_s, abs=0.01)
    assert source.warnings == []
    assert replace(source.info, frame_count=None).duration_s == pytest.approx(last_s, abs=0.1)
