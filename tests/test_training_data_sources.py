"""What all sources share: split lists, pictures that may be damaged, crops and sizes, mappings of a recipe."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from marigold3d.errors import InputError, UsageError
from training.data import open_sources
from training.data.fitting import Fitted, cropped, resized
from training.data.pictures import read_depth, read_rgb, to_sample
from training.data.samples import CorruptSample, Sample
from training.data.splits import read_split, read_table, require_files


def coordinates(height: int, width: int) -> Sample:
    """A sample whose depth is 1000 row + column + 1, and whose picture repeats the low bytes of both."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rgb = torch.stack((row % 256, column % 256, torch.zeros_like(row))).to(torch.uint8)
    return Sample(rgb, (1000.0 * row + column + 1)[None], (column % 3 > 0)[None], "coordinates")


class One:
    """A source of one sample."""

    name = "one"

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return [self.sample][index]


def test_a_split_list_needs_no_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "split.txt"
    path.write_text("a.png b.png filled.png\r\nc.png None\n\nd.png  e.png")
    assert read_split(path) == [("a.png", "b.png", "filled.png"), ("d.png", "e.png")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no files"),
        (b"a.png None\n", "lists no files"),
        (b"a b\nlonely.png\n", "split.txt, line 2: 'lonely.png' is no pair"),
        (b"\xff\xfe\x00\x81", "not text"),
        (None, "cannot read the split .*No such file"),
    ],
)
def test_split_lists_that_cannot_be_used(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "split.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_split(path)


def test_a_table_lacking_columns_is_refused_and_a_cut_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b,c\n1,2,3\n4,5")
    assert read_table(path, ["a", "c"]) == [{"a": "1", "b": "2", "c": "3"}]
    with pytest.raises(InputError, match="has no column d"):
        read_table(path, ["a", "d"])


def test_missing_files_are_counted_and_the_first_named(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "0.png").touch()
    names = [f"x/{i}.png" for i in range(4)] + ["y/0.png"]
    with pytest.raises(InputError, match=r"lacks 4 of 5 files: x/1.png, x/2.png, x/3.png, …; fetch it$"):
        require_files(tmp_path, names, "fetch it")
    require_files(tmp_path, ["x/0.png"], "fetch it")


def write_depth(path: Path) -> None:
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "depth.png: "),
        (lambda whole: whole[:20], "depth.png: "),
        (lambda whole: b"", "depth.png: not an image"),
        (lambda whole: b"<html>404</html>", "depth.png: not an image"),
        (lambda whole: whole[:60] + bytes([whole[60] ^ 255]) + whole[61:], "depth.png: "),
    ],
    ids=["half", "header", "empty", "page", "flipped"],
)
def test_damaged_pictures_are_corrupt_samples(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "depth.png"
    write_depth(path)
    assert read_depth(path, "depth.png", 0.001)[0, 1, 0] == pytest.approx(64 * 16 / 1000)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptSample, match=message) as caught:
        read_depth(path, "depth.png", 0.001)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_jpeg_cut_short_is_corrupt_not_grey(tmp_path: Path) -> None:
    path = tmp_path / "rgb.jpg"
    Image.effect_noise((200, 100), 80).convert("RGB").save(path)
    assert read_rgb(path, "rgb.jpg").shape == (3, 100, 200)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(CorruptSample, match=r"rgb.jpg: .*truncated"):
        read_rgb(path, "rgb.jpg")
    path.unlink()
    with pytest.raises(CorruptSample, match=r"rgb.jpg: no such file"):
        read_rgb(path, "rgb.jpg")


def test_colours_are_no_depth_and_sizes_must_agree(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "depth.png")
    with pytest.raises(CorruptSample, match="must be 16-bit grey, this is RGB"):
        read_depth(tmp_path / "depth.png", "depth.png", 0.001)
    with pytest.raises(CorruptSample, match=r"it: the picture is 4x3, its depth 5x3"):
        to_sample(torch.zeros(3, 3, 4, dtype=torch.uint8), torch.ones(1, 3, 5), (0.0, 2.0), "it")


def test_grey_pictures_become_three_channels(tmp_path: Path) -> None:
    Image.new("L", (4, 3), 77).save(tmp_path / "grey.png")
    assert (read_rgb(tmp_path / "grey.png", "grey") == 77).all()


def test_the_crop_is_the_middle_or_the_bottom_middle() -> None:
    sample = coordinates(10, 9)
    middle, bottom = cropped(sample, (4, 5)), cropped(sample, (4, 5), bottom=True)
    assert middle.depth_m[0, 0, 0] == 3000 + 2 + 1
    assert bottom.depth_m[0, 0, 0] == 6000 + 2 + 1
    for part in (middle, bottom):
        assert part.rgb.shape == (3, 4, 5)
        assert (part.rgb[0] == (part.depth_m[0] // 1000)).all()
        assert (part.valid == ((part.depth_m - 1) % 1000 % 3 > 0)).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_resizing_invents_no_depth_and_keeps_each_with_its_mask(
    height: int, width: int, new_height: int, new_width: int
) -> None:
    sample = coordinates(height, width)
    new = resized(sample, (new_height, new_width))
    assert new.rgb.shape == (3, new_height, new_width)
    assert new.rgb.dtype == torch.uint8
    assert set(new.depth_m.unique().tolist()) <= set(sample.depth_m.unique().tolist())
    assert (new.valid == ((new.depth_m - 1) % 1000 % 3 > 0)).all()


def test_resizing_averages_colours() -> None:
    checker = torch.tensor([[0, 200], [200, 0]], dtype=torch.uint8).repeat(8, 8)
    sample = Sample(
        checker.expand(3, 16, 16), torch.ones(1, 16, 16), torch.ones(1, 16, 16, dtype=torch.bool), "checker"
    )
    assert (resized(sample, (4, 4)).rgb[:, 1:3, 1:3].int() - 100).abs().max() <= 1


def test_crop_comes_before_resize() -> None:
    fitted = Fitted(One(coordinates(10, 12)), crop=[4, 4], resize=[2, 2])
    assert fitted.name == "one"
    assert len(fitted) == 1
    assert set((fitted[0].depth_m // 1000).unique().tolist()) <= {3, 4, 5, 6}
    with pytest.raises(CorruptSample, match="coordinates is 12x10, smaller than the crop of 13x4"):
        Fitted(One(coordinates(10, 12)), crop=[4, 13])[0]


@pytest.mark.parametrize("size", [[3], [3, 0], "34", [3.0, 4.0], 7, [True, 4]])
def test_sizes_are_two_positive_integers(size: object) -> None:
    with pytest.raises(UsageError, match=r"resize=.* is no size: write \[height, width\]"):
        Fitted(One(coordinates(3, 3)), resize=size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"kind": "hypersin", "root": "x"}, "kind='hypersin', did you mean 'hypersim'?"),
        ({"root": "x"}, "kind=None: use one of hypersim, hypersim_raw, vkitti, procedural, shards"),
        ({"kind": "hypersim", "rot": "x"}, "hypersim has no key 'rot', did you mean 'root'?"),
        ({"kind": "vkitti"}, "vkitti needs root"),
        ({"kind": "procedural", "height": 8}, "procedural needs width"),
    ],
)
def test_mappings_that_do_not_fit(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_sources([mapping])
    assert message in str(caught.value)


def test_mappings_open_sources_in_order_and_are_left_as_they_are(tmp_path: Path) -> None:
    write_depth(tmp_path / "depth_plane_cam_00_fr0000.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "rgb_cam_00_fr0000.png")
    mapping = {"kind": "hypersim", "root": str(tmp_path), "crop": [32, 48], "resize": [16, 24], "weight": 0.9}
    whole, small = open_sources([{"kind": "hypersim", "root": str(tmp_path)}, mapping])
    assert whole[0].rgb.shape == (3, 64, 64)
    assert small[0].rgb.shape == (3, 16, 24)
    assert mapping["kind"] == "hypersim"
    assert mapping["weight"] == 0.9
