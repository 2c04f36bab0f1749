"""A network's own numbers as files and as pictures: exact, or exact to half a step, and warm where it is near."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from marigold3d.errors import InputError, UsageError
from marigold3d.export import relative_depth as files
from marigold3d.export.colormaps import COLORMAPS, LEVELS, colormap
from marigold3d.export.preview import ColorRange, far_large, paint_depth, paint_sigma
from marigold3d.export.relative_depth import ValueEncoding
from marigold3d.types import Domain, RelativeDepth

DOMAINS: tuple[Domain, ...] = get_args(Domain)


def ramp_towards_far(domain: Domain, height: int = 40, width: int = 60) -> RelativeDepth:
    """z from 1 at the left to 5 at the right, in `domain`, more uncertain to the right."""
    z = np.tile(np.linspace(1, 5, width, dtype=np.float32), (height, 1))
    values = {"depth": z / 5, "disparity": 3 / z, "log_depth": np.log(z), "metric": z}[domain]
    return RelativeDepth(values.astype(np.float32), domain, (0.01 * z).astype(np.float32))


# -- 16-bit encodings -------------------------------------------------------------------------------------------------

NUMBERS = st.floats(-1e6, 1e6, width=32)


@given(npst.arrays(np.float32, (3, 5), elements=NUMBERS))
def test_every_number_within_the_range_is_exact_to_half_a_step(numbers: np.ndarray) -> None:
    encoding = ValueEncoding.for_range(float(numbers.min()), float(numbers.max()))
    values = encoding.encode(numbers)
    assert values.min() >= 1, "a number was lost"
    float32_step = np.spacing(np.abs(numbers).max())
    error = np.abs(encoding.decode(values).astype(np.float64) - numbers)
    assert error.max() <= 0.5001 * encoding.scale + float32_step


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_the_ends_of_the_range_are_the_ends_of_the_values(low: float, extent: float) -> None:
    ends = np.array([[low, low + extent]], np.float32)
    values = ValueEncoding.for_range(float(ends[0, 0]), float(ends[0, 1])).encode(ends)
    assert values.tolist() == [[1, 65535]]


def test_what_cannot_be_held_is_no_estimate() -> None:
    encoding = ValueEncoding.for_range(0.0, 1.0)
    outside = np.array([[np.nan, np.inf, -np.inf, -0.1, 1.1, 0.5]], np.float32)
    values = encoding.encode(outside)
    assert values[0, :5].tolist() == [0] * 5
    assert np.isnan(encoding.decode(values)[0, :5]).all()
    assert encoding.decode(values)[0, 5] == pytest.approx(0.5, abs=encoding.scale)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.0, np.inf), (np.nan, 1.0)])
def test_a_range_that_is_none(low: float, high: float) -> None:
    with pytest.raises(InputError, match="low <= high"):
        ValueEncoding.for_range(low, high)


# -- files, read by others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_npz_is_exact_and_says_what_it_holds(tmp_path: Path, domain: Domain) -> None:
    depth = ramp_towards_far(domain)
    depth.values[0, 0] = np.nan
    files.write_npz(tmp_path / "a.npz", depth)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["depth"], depth.values)
        np.testing.assert_array_equal(arrays["uncertainty"], depth.uncertainty)
        assert arrays["depth"].dtype == np.float32
        assert str(arrays["domain"]) == domain
        grows_away = np.nanmean(depth.values[:, 0]) < np.nanmean(depth.values[:, -1])
        assert str(arrays["near"]) == ("small" if grows_away else "large")
    again = files.read_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.values, depth.values)
    assert again.domain == domain


def test_the_same_depth_gives_the_same_bytes(tmp_path: Path) -> None:
    """So that interrupted runs can be compared with uninterrupted ones: no clock in any file."""
    depth = ramp_towards_far("depth")
    for name in ("a", "b"):
        files.write_npz(tmp_path / f"{name}.npz", depth)
        files.write_relative_exr(tmp_path / f"{name}.exr", depth)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (tmp_path / "a.exr").read_bytes() == (tmp_path / "b.exr").read_bytes()


def test_exr_in_openexr(tmp_path: Path) -> None:
    openexr = pytest.importorskip("OpenEXR")
    depth = ramp_towards_far("disparity")
    files.write_relative_exr(tmp_path / "a.exr", depth)
    with openexr.File(str(tmp_path / "a.exr"), separate_channels=True) as file:
        channels, header = file.channels(), file.header()
        np.testing.assert_array_equal(channels["Z"].pixels, depth.values)
        np.testing.assert_array_equal(channels["sigma"].pixels, depth.uncertainty)
        assert "near is large" in header["comments"]


def test_png16_in_pillow_and_opencv(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    depth = ramp_towards_far("log_depth")
    encoding = ValueEncoding.for_range(float(depth.values.min()), float(depth.values.max()))
    files.write_png16(tmp_path / "a.png", depth.values, encoding)
    with Image.open(tmp_path / "a.png") as image:
        stored = np.asarray(image).astype(np.uint16)
    np.testing.assert_array_equal(stored, cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED))
    np.testing.assert_allclose(stored * encoding.scale + encoding.offset, depth.values, atol=0.51 * encoding.scale)
    np.testing.assert_array_equal(files.read_png16(tmp_path / "a.png", encoding), encoding.decode(stored))


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_damaged_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    for name in ("a.npz", "a.npy", "a.png"):
        (tmp_path / name).write_bytes(content)
    for read in (
        lambda: files.read_npz(tmp_path / "a.npz"),
        lambda: files.read_npy(tmp_path / "a.npy"),
        lambda: files.read_png16(tmp_path / "a.png", ValueEncoding(1.0, 0.0)),
    ):
        with pytest.raises(InputError, match=r"a\.np|a\.png") as caught:
            read()
        assert "\n" not in str(caught.value)


# -- colours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLORMAPS)
def test_colours_are_those_of_matplotlib(name: str) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    theirs = 255 * matplotlib.colormaps[name](np.linspace(0, 1, LEVELS))[:, :3]
    difference = np.abs(colormap(name).astype(float) - theirs)
    assert difference.max() < 8
    assert difference.mean() < 1.5
    np.testing.assert_array_equal(colormap(f"{name}_r"), colormap(name)[::-1])


def test_an_unknown_colour_map_names_the_known() -> None:
    with pytest.raises(UsageError, match="viridis"):
        colormap("jet_of_my_own")


@pytest.mark.parametrize("domain", DOMAINS)
def test_near_is_red_and_far_is_blue_in_every_domain(domain: Domain) -> None:
    depth = ramp_towards_far(domain)
    painted = paint_depth(depth, ColorRange.of(depth)).astype(int)
    assert painted[0, 0].tolist() == [158, 1, 66]
    assert painted[0, -1].tolist() == [94, 79, 162]
    assert (np.diff(far_large(depth)[0]) > 0).all()


def test_pixels_without_an_estimate_are_black() -> None:
    depth = ramp_towards_far("depth")
    depth.values[3, 4] = np.nan
    painted = paint_depth(depth, ColorRange.of(depth))
    assert painted[3, 4].tolist() == [0, 0, 0]
    assert (painted.sum(-1) == 0).sum() == 1
    nothing = RelativeDepth(np.full((3, 4), np.nan, np.float32), "depth")
    assert not paint_depth(nothing, ColorRange.of(nothing)).any()


def test_sigma_is_brighter_where_less_is_known() -> None:
    depth = ramp_towards_far("metric")
    assert depth.uncertainty is not None
    brightness = paint_sigma(depth.uncertainty, ColorRange.of(depth)).astype(int).sum(-1)
    assert brightness[0, -1] > brightness[0, 30] > brightness[0, 0]


def test_one_wild_frame_does_not_take_the_colours_of_a_clip() -> None:
    calm = [ColorRange(0.0 + 0.001 * i, 1.0, 0.1) for i in range(60)]
    shown = ColorRange.of_clip([*calm, ColorRange(-50.0, 80.0, 9.0)])
    assert -0.01 < shown.near < 0.1
    assert 0.99 < shown.far < 1.01
    assert shown.sigma == pytest.approx(0.1)
