"""`marigold3d depth` with networks that are formulas: what is written, read by others; resumed, reused and refused."""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from marigold3d.config import DepthConfig, VideoConfig
from marigold3d.depth.protocol import ClipPass
from marigold3d.depth_files import FORMATS, OutputConfig, Report, clip, estimate_files
from marigold3d.depth_files.inputs import find_inputs
from marigold3d.errors import InputError, OutputError, UsageError
from marigold3d.images import read_image
from marigold3d.progress import Progress
from marigold3d.progress import run as drive
from marigold3d.types import Domain, RelativeDepth
from marigold3d.video import open_video, write_video

CLIP = Path(__file__).resolve().parents[1] / "examples" / "clip.mp4"
FRAMES = 9


class Brightness:
    """An estimator whose depth is how dark a pixel is; it counts the frames that it has seen."""

    name = "brightness"

    def __init__(self, domain: Domain = "disparity") -> None:
        self.domain = domain
        self.seen = 0
        self.stop_at = 10**9

    def estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        return [self._one(picture) for picture in rgb]

    def _one(self, picture: NDArray[np.uint8]) -> RelativeDepth:
        if min(picture.shape[:2]) < 2:
            raise InputError("too narrow for depth")
        if self.seen == self.stop_at:
            raise KeyboardInterrupt
        self.seen += 1
        values = 3.0 - picture.mean(-1, dtype=np.float32) / np.float32(100)
        return RelativeDepth(values, self.domain, np.abs(values) * np.float32(0.1))

    def provenance(self) -> dict[str, str]:
        return {"model": self.name}


class Leaning(Brightness):
    """Each frame's depth holds a part of the one before, in segments of four."""

    segment = 4

    def batch_size(self, height: int, width: int) -> int:
        return 1

    def clip_pass(self) -> ClipPass:
        before: RelativeDepth | None = None
        last = -2

        def estimate(positions: Sequence[int], rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
            nonlocal before, last
            depth = self._one(rgb[0])
            if before is not None and positions[0] % self.segment and positions[0] == last + 1:
                depth = replace(depth, values=depth.values + np.float32(0.5) * before.values)
            before, last = depth, positions[0]
            return [depth]

        return estimate


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Brightness:
    return use(Brightness(), monkeypatch)


def use(network: Brightness, monkeypatch: pytest.MonkeyPatch) -> Brightness:
    monkeypatch.setattr("marigold3d.depth_files.run.load_estimator", lambda _: network)
    return network


def depth_of(
    *inputs: Path, out: Path, config: DepthConfig | None = None, overwrite: bool = False, **output: Any
) -> Report:
    frames = VideoConfig(max_frames=FRAMES, stride=2)
    steps = estimate_files(
        inputs, out, config or DepthConfig(), frames, OutputConfig(**({"max_side": 64} | output)), overwrite=overwrite
    )
    return drive(steps)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def frames_of_clip() -> list[tuple[int, NDArray[np.uint8]]]:
    source = open_video(CLIP, VideoConfig(max_frames=FRAMES, stride=2))
    return [(frame.index, frame.rgb) for frame in source.frames(max_side=64)]


# -- clips ------------------------------------------------------------------------------------------------------------


def test_every_format_of_a_clip_holds_what_the_network_gave(network: Brightness, tmp_path: Path) -> None:
    openexr = pytest.importorskip("OpenEXR")
    report = depth_of(CLIP, out=tmp_path, formats=FORMATS)
    folder = tmp_path / "clip"
    record = json.loads((folder / "depth.json").read_text())
    assert (record["domain"], record["near"], record["status"]) == ("disparity", "large", "finished")
    assert record["frames"] == list(range(0, 2 * FRAMES, 2))
    assert record["fps"] == 12
    assert report.estimated == network.seen == FRAMES
    expected = [depth for _, rgb in frames_of_clip() for depth in Brightness().estimate(rgb[None])]
    for index, truth in zip(record["frames"], expected, strict=True):
        name = f"{index:06d}"
        assert truth.uncertainty is not None
        np.testing.assert_array_equal(np.load(folder / f"{name}.npy"), truth.values)
        np.testing.assert_array_equal(np.load(folder / "uncertainty" / f"{name}.npy"), truth.uncertainty)
        with np.load(folder / f"{name}.npz") as arrays:
            np.testing.assert_array_equal(arrays["depth"], truth.values)
            np.testing.assert_array_equal(arrays["uncertainty"], truth.uncertainty)
        with openexr.File(str(folder / f"{name}.exr"), separate_channels=True) as file:
            np.testing.assert_array_equal(file.channels()["Z"].pixels, truth.values)
        for png, key, values in (
            (folder / f"{name}.png", "png16", truth.values),
            (folder / "uncertainty" / f"{name}.png", "png16_uncertainty", truth.uncertainty),
        ):
            with Image.open(png) as image:
                stored = np.asarray(image).astype(np.float64)
            scale, offset = record[key]["scale"], record[key]["offset"]
            assert stored.min() >= 1
            np.testing.assert_allclose(scale * stored + offset, values, atol=0.51 * scale)
        for kind in ("preview", "uncertainty_preview"):
            with Image.open(folder / kind / f"{name}.png") as image:
                assert (image.mode, image.size) == ("RGB", truth.values.shape[::-1])


def test_one_encoding_for_the_whole_clip_uses_all_of_its_values(network: Brightness, tmp_path: Path) -> None:
    depth_of(CLIP, out=tmp_path, formats=("png16",))
    stored = [np.asarray(Image.open(f)).astype(int) for f in sorted((tmp_path / "clip").glob("*.png"))]
    assert min(s.min() for s in stored) == 1
    assert max(s.max() for s in stored) == 65535
    assert {f.suffix for f in (tmp_path / "clip").rglob("*") if f.is_file()} == {".png", ".json"}
    assert not (tmp_path / "clip" / ".values").exists()


def test_the_video_shows_the_clip_beside_its_depth(network: Brightness, tmp_path: Path) -> None:
    depth_of(CLIP, out=tmp_path, formats=("video", "preview"))
    with av.open(str(tmp_path / "clip" / "preview.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].average_rate == 12
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    truth = frames_of_clip()
    assert len(pictures) == len(truth)
    for picture, (index, rgb) in zip(pictures, truth, strict=True):
        height, width = rgb.shape[:2]
        assert picture.shape == (height, 2 * width, 3)
        assert np.abs(picture[:, :width].astype(int) - rgb).mean() < 12  # H.264, with colours at half the size
        painted = np.asarray(Image.open(tmp_path / "clip" / "preview" / f"{index:06d}.png")).astype(int)
        assert np.abs(picture[:, width:].astype(int) - painted).mean() < 12


@pytest.mark.parametrize("kind", [Brightness, Leaning])
@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_an_interrupted_clip_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Brightness], stop_at: int
) -> None:
    use(kind(), monkeypatch)
    depth_of(CLIP, out=tmp_path / "whole", formats=("npz", "png16", "video"))
    first = use(kind(), monkeypatch)
    first.stop_at = stop_at
    arguments = {"out": tmp_path / "cut", "formats": ("npz", "png16", "video"), "config": DepthConfig(batch=1)}
    with pytest.raises(KeyboardInterrupt):
        depth_of(CLIP, **arguments)
    kept = contents(tmp_path / "cut")
    second = use(kind(), monkeypatch)
    depth_of(CLIP, **arguments)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    frames_kept = sum(name.endswith(".npz") for name in kept)
    leaning = 3 if kind is Leaning else 0  # frames of the segment that others lean on are seen again
    assert FRAMES - frames_kept <= second.seen <= FRAMES - frames_kept + leaning
    assert not [name for name in kept if "partial" in name]


@pytest.mark.parametrize("formats", [("png16", "video"), ("npy", "preview")])
def test_interrupted_while_files_are_made_from_the_numbers(
    network: Brightness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, formats: tuple[str, ...]
) -> None:
    """Then no frame is estimated again."""
    depth_of(CLIP, out=tmp_path / "whole", formats=formats)
    with monkeypatch.context() as patched:
        calls: list[int] = []

        def stop(*args: Any) -> None:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            original(*args)

        original = clip.write_map
        patched.setattr(clip, "write_map", stop)
        with pytest.raises(KeyboardInterrupt):
            depth_of(CLIP, out=tmp_path / "cut", formats=formats)
    seen = network.seen
    depth_of(CLIP, out=tmp_path / "cut", formats=formats)
    assert network.seen == seen
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_what_is_there_is_not_made_again(network: Brightness, tmp_path: Path) -> None:
    """The same command does nothing; another format is made from the numbers; a lost file is made anew."""
    depth_of(CLIP, out=tmp_path)
    before = contents(tmp_path)
    report = depth_of(CLIP, out=tmp_path)
    assert (report.estimated, report.results[0]["reused"], network.seen) == (0, True, FRAMES)
    assert contents(tmp_path) == before
    depth_of(CLIP, out=tmp_path, formats=("png16",))
    assert network.seen == FRAMES
    assert len(list((tmp_path / "clip").glob("*.png"))) == FRAMES
    (tmp_path / "clip" / "000004.npz").unlink()
    depth_of(CLIP, out=tmp_path)
    assert network.seen == FRAMES + 1
    assert contents(tmp_path)[str(Path("clip", "000004.npz"))] == before[str(Path("clip", "000004.npz"))]


def test_other_settings_are_refused_in_one_line(network: Brightness, tmp_path: Path) -> None:
    depth_of(CLIP, out=tmp_path)
    before = contents(tmp_path)
    for other in ({"config": DepthConfig(seed=3)}, {"max_side": 32}, {"uncertainty": False}):
        with pytest.raises(OutputError, match="--overwrite"):
            depth_of(CLIP, out=tmp_path, **other)
    assert contents(tmp_path) == before
    assert network.seen == FRAMES
    depth_of(CLIP, out=tmp_path, max_side=32, overwrite=True, uncertainty=False)
    with np.load(tmp_path / "clip" / "000000.npz") as arrays:
        assert max(arrays["depth"].shape) == 32
        assert "uncertainty" not in arrays


def test_other_colours_are_painted_without_estimating(network: Brightness, tmp_path: Path) -> None:
    depth_of(CLIP, out=tmp_path, formats=("npz", "preview"))
    first = contents(tmp_path / "clip" / "preview")
    depth_of(CLIP, out=tmp_path, formats=("npz", "preview"), colormap="gray")
    assert network.seen == FRAMES
    second = contents(tmp_path / "clip" / "preview")
    assert second.keys() == first.keys()
    assert all(second[name] != first[name] for name in first)
    with Image.open(tmp_path / "clip" / "preview" / "000000.png") as image:
        grey = np.asarray(image)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_a_folder_of_something_else_is_left_alone(network: Brightness, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "dear.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="holds something else"):
            depth_of(CLIP, out=tmp_path, overwrite=overwrite)
    assert (tmp_path / "clip" / "dear.txt").read_text() == "dear"


def test_few_frames_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading and writing are no more than a few, however long the clip is."""
    network = use(Brightness(), monkeypatch)
    read: list[int] = []
    ahead: list[int] = []
    original = clip.ClipJob.__init__

    def watched(self: clip.ClipJob, **parts: Any) -> None:
        source, frames = parts["source"], parts["source"].frames

        def counted(**options: Any) -> Iterator[Any]:
            for frame in frames(**options):
                read.append(1)
                yield frame

        source.frames = counted
        original(self, **parts)

    monkeypatch.setattr(clip.ClipJob, "__init__", watched)
    long = tmp_path / "long.mp4"
    write_video(long, (np.full((32, 48, 3), i % 200, np.uint8) for i in range(120)), 25)
    steps = estimate_files([long], tmp_path / "out", DepthConfig(batch=2), VideoConfig(), OutputConfig(("npz",)))
    for progress in steps:
        if progress.stage == "depth":
            ahead.append(len(read) - progress.done)
    assert network.seen == len(ahead) == 120
    assert max(ahead) <= 6


def test_a_full_disk_is_one_line_and_the_rest_is_kept(
    network: Brightness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from marigold3d.export import relative_depth

    original, written = np.savez, []

    def fill(file: Any, **arrays: Any) -> None:
        if len(written) == 3:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file)
        original(file, **arrays)

    with monkeypatch.context() as patched:
        patched.setattr(relative_depth.np, "savez", fill)
        with pytest.raises(OutputError, match="disk is full") as caught:
            depth_of(CLIP, out=tmp_path)
    assert "\n" not in str(caught.value)
    assert [f.name for f in sorted((tmp_path / "clip").iterdir())] == [
        "000000.npz",
        "000002.npz",
        "000004.npz",
        "depth.json",
    ]
    depth_of(CLIP, out=tmp_path)
    assert len(list((tmp_path / "clip").glob("*.npz"))) == FRAMES


def test_a_range_without_frames_leaves_nothing(network: Brightness, tmp_path: Path) -> None:
    steps = estimate_files(
        [CLIP], tmp_path / "out", DepthConfig(), VideoConfig(start_s=0.001, end_s=0.002), OutputConfig()
    )
    report = drive(steps)
    assert "widen the range" in str(report.failures[CLIP])
    assert not list((tmp_path / "out").iterdir())


# -- images -----------------------------------------------------------------------------------------------------------


def picture(path: Path, size: tuple[int, int] = (24, 16), level: int = 100) -> Path:
    Image.new("RGB", size, (level, level, level)).save(path)
    return path


def test_images_of_any_size_each_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with an estimator whose frames lean on those before them."""
    use(Leaning("log_depth"), monkeypatch)
    paths = [picture(tmp_path / f"{i}.png", (20 + i // 2, 16), 50 * i) for i in range(5)]
    report = depth_of(*paths, out=tmp_path / "out", formats=("npy", "npz", "png16", "preview"))
    assert [Path(r["input"]) for r in report.results] == paths
    for i in range(5):
        values = np.load(tmp_path / "out" / f"{i}_depth.npy")
        assert values.shape == (16, 20 + i // 2)
        np.testing.assert_allclose(values, 3.0 - 0.5 * i, rtol=1e-6)
        record = json.loads((tmp_path / "out" / f"{i}_depth.json").read_text())
        assert (record["domain"], record["near"], record["width"]) == ("log_depth", "small", 20 + i // 2)
        with Image.open(tmp_path / "out" / f"{i}_depth.png") as image:
            decoded = np.asarray(image).astype(float) * record["png16"]["scale"] + record["png16"]["offset"]
        np.testing.assert_allclose(decoded, values, rtol=1e-6)
        assert all(Path(file).is_file() for file in report.results[i]["files"])
        assert len(report.results[i]["files"]) == 7  # the NPZ holds both, of the others there are two


def test_what_cannot_be_read_does_not_stop_the_others(network: Brightness, tmp_path: Path) -> None:
    good = [picture(tmp_path / "a.png"), picture(tmp_path / "z.png", (30, 20))]
    (tmp_path / "text.png").write_text("no image")
    picture(tmp_path / "whole.jpg", (200, 200))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:600])
    (tmp_path / "whole.jpg").unlink()
    picture(tmp_path / "narrow.png", (1, 1))
    (tmp_path / "broken.mp4").write_text("no clip")
    report = depth_of(tmp_path, out=tmp_path / "out")
    assert {path.name for path in report.failures} == {"text.png", "cut.jpg", "narrow.png", "broken.mp4"}
    assert [Path(r["input"]) for r in report.results] == good
    assert all("\n" not in str(error) for error in report.failures.values())
    assert json.dumps(report.as_dict())


def test_images_are_resumed_reused_and_refused(network: Brightness, tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{i}.png") for i in range(4)]
    network.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        depth_of(*paths, out=tmp_path / "out", config=DepthConfig(batch=1))
    network.stop_at = 10**9
    kept = len(list((tmp_path / "out").glob("*.json")))
    report = depth_of(*paths, out=tmp_path / "out")
    assert sum(r["reused"] for r in report.results) == kept
    assert report.estimated == 4 - kept
    assert depth_of(*paths, out=tmp_path / "out").estimated == 0
    picture(paths[0], level=7)  # another picture under the same name
    with pytest.raises(OutputError, match="--overwrite"):
        depth_of(*paths, out=tmp_path / "out")
    assert depth_of(*paths, out=tmp_path / "out", overwrite=True).estimated == 4


def test_a_file_of_someone_else_is_not_replaced(network: Brightness, tmp_path: Path) -> None:
    (tmp_path / "a_depth.npy").write_text("dear")
    with pytest.raises(OutputError, match="--overwrite"):
        depth_of(picture(tmp_path / "a.png"), out=tmp_path)
    assert (tmp_path / "a_depth.npy").read_text() == "dear"
    assert network.seen == 0


def test_progress_counts_the_images(network: Brightness, tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{i}.png") for i in range(3)]
    said: list[Progress] = list(
        estimate_files(paths, tmp_path / "out", DepthConfig(), VideoConfig(), OutputConfig(("npy",)))
    )
    assert [(p.stage, p.done, p.total) for p in said] == [("depth", i, 3) for i in (1, 2, 3)]


# -- what the arguments mean ------------------------------------------------------------------------------------------


def test_inputs_in_any_mixture(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("img10.png", "img2.png", "other.jpg"):
        picture(folder / name)
    (folder / "film.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    mixed = find_inputs([CLIP, folder, folder / "img2.png", folder / "img*.png"])
    assert [(i.kind, i.stem) for i in mixed] == [
        ("clip", "clip"),
        ("image", "img2"),
        ("image", "img10"),
        ("image", "other"),
        ("clip", "film"),
    ]
    for given, stem in ((folder, "photos"), (folder / "img*.png", "photos")):
        assert [(i.kind, i.stem) for i in find_inputs([given], sequence=True)] == [("clip", stem)]


def test_a_folder_as_a_clip(network: Brightness, tmp_path: Path) -> None:
    folder = tmp_path / "walk"
    folder.mkdir()
    for i in range(8):
        picture(folder / f"{i}.png", level=20 * i)
    depth_of(folder, out=tmp_path / "out", sequence=True, formats=("npz",))
    assert [f.name for f in sorted((tmp_path / "out" / "walk").glob("*.npz"))] == [f"{i:06d}.npz" for i in (0, 2, 4, 6)]


def test_results_beside_the_images_are_no_images(network: Brightness, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "my_depth.png")  # not ours: nothing says that it is
    depth_of(tmp_path, out=tmp_path, formats=("png16", "preview"))
    again = depth_of(tmp_path, out=tmp_path, formats=("png16", "preview"))
    assert [Path(r["input"]).name for r in again.results] == ["a.png", "my_depth.png"]
    assert network.seen == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: [f / "nowhere.png"], "no such file"),
        (lambda f: [f / "nothing*.png"], "nothing matches"),
        (lambda f: [f], "neither images nor clips"),
        (lambda f: [picture(f / "a.png"), picture(f / "A.jpg")], "one name"),
    ],
)
def test_inputs_that_cannot_be_meant(
    network: Brightness, tmp_path: Path, make: Callable[[Path], list[Path]], words: str
) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match=words):
        depth_of(*make(tmp_path / "in"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"formats": ("tiff",)}, "png16"), ({"colormap": "mine"}, "Spectral"), ({"max_side": 5}, "at least 32")],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        OutputConfig(**settings)


def test_a_video_of_images_is_refused(network: Brightness, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="made of a clip"):
        depth_of(picture(tmp_path / "a.png"), out=tmp_path / "out", formats=("video",))


def test_exr_without_openexr_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marigold3d.depth_files.settings.find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"marigold3d\[export\]"):
        OutputConfig(("exr",))


# -- pixels of every kind of image ------------------------------------------------------------------------------------

RAMP = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (20, 1))  # (H, W)
WIDE_RAMP = (RAMP.astype(np.uint16) * 257).astype(np.uint16)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.fixture
def no_warnings() -> Iterator[None]:
    """Whatever Pillow has to say about a picture must not reach the user."""
    with warnings.catch_warnings(action="error"):
        yield


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("grey.png", lambda: Image.fromarray(RAMP)),
        ("grey16.png", lambda: Image.fromarray(WIDE_RAMP)),
        ("grey16.tif", lambda: Image.fromarray(WIDE_RAMP)),
        ("grey32.tif", lambda: Image.fromarray(WIDE_RAMP.astype(np.int32))),
        ("alpha.png", lambda: Image.merge("LA", (Image.fromarray(RAMP), Image.fromarray(RAMP)))),
        ("rgba.png", lambda: Image.merge("RGBA", [Image.fromarray(RAMP)] * 4)),
        ("palette.png", lambda: Image.fromarray(RAMP).convert("P")),
        ("rgb.bmp", lambda: Image.fromarray(RAMP).convert("RGB")),
        ("cmyk.tif", lambda: Image.fromarray(RAMP).convert("RGB").convert("CMYK")),
        ("cmyk.jpg", lambda: Image.fromarray(RAMP).convert("RGB").convert("CMYK")),
    ],
)
def test_grey_of_every_kind_is_the_same_grey(
    no_warnings: None, tmp_path: Path, name: str, make: Callable[[], Image.Image]
) -> None:
    rgb = read_image(saved(tmp_path / name, make()))
    assert (rgb.shape, rgb.dtype) == ((20, 32, 3), np.uint8)
    assert np.abs(rgb.astype(int) - RAMP[..., None]).max() <= (4 if name.endswith("jpg") else 1)


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    colours = np.dstack((WIDE_RAMP, WIDE_RAMP[:, ::-1], np.full_like(WIDE_RAMP, 20000)))  # RGB
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), colours[..., ::-1])
        assert np.abs(read_image(tmp_path / name).astype(int) - colours / 257).max() <= 1


def test_a_palette_with_transparency_does_not_warn(no_warnings: None, tmp_path: Path) -> None:
    image = Image.fromarray(RAMP).convert("P")
    path = saved(tmp_path / "a.png", image, transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_image(path), np.dstack([RAMP] * 3))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, lambda a: np.rot90(a, 1))],
)
@pytest.mark.parametrize("depth", [8, 16])
def test_pictures_stand_upright(
    tmp_path: Path, orientation: int, turn: Callable[[NDArray[Any]], NDArray[Any]], depth: int
) -> None:
    image = Image.fromarray(RAMP if depth == 8 else WIDE_RAMP)
    exif = image.getexif()
    exif[274] = orientation
    path = saved(tmp_path / "a.png", image, exif=exif)
    np.testing.assert_array_equal(read_image(path)[..., 0], turn(RAMP))


def test_very_large_pictures(no_warnings: None, tmp_path: Path) -> None:
    """20,000 x 20,000 px is refused from the header; 100 megapixels are read reduced, without Pillow's warning."""
    with pytest.raises(InputError, match="reduce it first") as caught:
        read_image(saved(tmp_path / "huge.png", Image.new("1", (20_000, 20_000))))
    assert "\n" not in str(caught.value)
    large = saved(tmp_path / "large.png", Image.new("1", (10_000, 10_000), 1))
    with pytest.raises(InputError, match="--max-side"):
        read_image(large)
    assert read_image(large, 500).shape == (500, 500, 3)
