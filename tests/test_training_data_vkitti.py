"""Virtual KITTI 2 in its official layouts: crop, centimetres, sky, splits, missing files."""

import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marigold3d.errors import InputError, UsageError
from training.data import open_sources
from training.data.samples import CorruptSample
from training.data.vkitti import FRAMES, TRAINING_SCENES, VARIANTS, VirtualKitti, pairs_of

HEIGHT, WIDTH = 375, 1242
FRAME_RGB = "Scene02/clone/frames/rgb/Camera_0/rgb_00000.jpg"
FRAME_DEPTH = "Scene02/clone/frames/depth/Camera_0/depth_00000.png"


def depth_cm() -> np.ndarray:
    """Depth that says where it is: row + 1 in metres, the column in centimetres above; sky in the first columns."""
    depth = (np.arange(HEIGHT)[:, None] + 1) * 100 + np.arange(WIDTH)[None] % 100
    depth[:, :20] = 65535
    return depth.astype(np.uint16)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One picture and its depth, to be linked as often as needed."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (WIDTH, HEIGHT), (200, 100, 50)).save(folder / "rgb.jpg", quality=95)
    Image.fromarray(depth_cm()).save(folder / "depth.png")
    return folder / "rgb.jpg", folder / "depth.png"


def link(pictures: tuple[Path, Path], root: Path, pairs: list[tuple[str, str]]) -> None:
    for names in pairs:
        for picture, name in zip(pictures, names, strict=True):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(picture, root / name)


@pytest.mark.parametrize(
    ("rgb_top", "depth_top"), [("", ""), ("rgb/", "depth/"), ("vkitti_2.0.3_rgb/", "vkitti_2.0.3_depth/")]
)
def test_all_frames_of_a_scene_are_found_in_each_layout(
    tmp_path: Path, pictures: tuple[Path, Path], rgb_top: str, depth_top: str
) -> None:
    frames = [
        (
            f"{rgb_top}Scene02/fog/frames/rgb/Camera_{camera}/rgb_{n:05d}.jpg",
            f"{depth_top}Scene02/fog/frames/depth/Camera_{camera}/depth_{n:05d}.png",
        )
        for camera, n in product((0, 1), range(233))
    ]
    link(pictures, tmp_path, frames)
    source = VirtualKitti(tmp_path, scenes=["Scene02"], variants=["fog"])
    assert len(source) == 466
    assert source.pairs == frames
    assert source[465].name == f"{rgb_top}Scene02/fog/frames/rgb/Camera_1/rgb_00232.jpg"


def test_the_lists_have_as_many_lines_as_marigolds(tmp_path: Path) -> None:
    (tmp_path / "Scene01").mkdir()
    assert len(pairs_of(tmp_path, TRAINING_SCENES, VARIANTS)) == 20148
    assert len(pairs_of(tmp_path, ["Scene01"], VARIANTS)) == 5364
    assert sum(FRAMES.values()) == 2126  # Cabon et al. 2020


def write_split(folder: Path, *lines: str) -> Path:
    (folder / "split.txt").write_text("\n".join(lines))  # no newline at the end
    return folder / "split.txt"


def test_the_crop_is_kittis_benchmarks(tmp_path: Path, pictures: tuple[Path, Path]) -> None:
    link(pictures, tmp_path, [(FRAME_RGB, FRAME_DEPTH)])
    sample = VirtualKitti(tmp_path, write_split(tmp_path, f"{FRAME_RGB} {FRAME_DEPTH}"))[0]
    assert sample.rgb.shape == (3, 352, 1216)
    assert sample.depth_m.shape == sample.valid.shape == (1, 352, 1216)
    # 375 - 352 = 23 rows above are cut; (1242 - 1216) / 2 = 13 columns on either side
    assert sample.depth_m[0, 0, 7] == pytest.approx(24.20)
    assert sample.depth_m[0, 0, 1215] == pytest.approx(24 + (1228 % 100) / 100)
    assert sample.depth_m[0, 351, 8] == pytest.approx(375.21)
    assert sample.rgb[:, 100, 100].tolist() == pytest.approx([200, 100, 50], abs=2)


def test_depth_counts_below_eighty_metres_and_the_sky_is_unknown(tmp_path: Path, pictures: tuple[Path, Path]) -> None:
    link(pictures, tmp_path, [(FRAME_RGB, FRAME_DEPTH)])
    sample = VirtualKitti(tmp_path, write_split(tmp_path, f"{FRAME_RGB} {FRAME_DEPTH}"), crop=None)[0]
    assert sample.depth_m.shape == (1, HEIGHT, WIDTH)
    assert (sample.depth_m[0, :, :20] == 0).all()
    assert not sample.valid[0, :, :20].any()
    assert sample.valid[0, :79, 20:].all()  # 1 to 79.99 m
    assert not sample.valid[0, 79:].any()  # from 80.00 m
    assert sample.depth_m[0, 79, 100] == pytest.approx(80.0)


def test_a_split_drops_rows_with_none(tmp_path: Path, pictures: tuple[Path, Path]) -> None:
    link(pictures, tmp_path, [(FRAME_RGB, FRAME_DEPTH)])
    split = write_split(tmp_path, f"{FRAME_RGB} None", "", f"{FRAME_RGB} {FRAME_DEPTH} 721.5")
    (source,) = open_sources([{"kind": "vkitti", "root": str(tmp_path), "split": str(split), "weight": 0.1}])
    assert len(source) == 1


def test_another_crop_is_at_the_bottom_too(tmp_path: Path, pictures: tuple[Path, Path]) -> None:
    link(pictures, tmp_path, [(FRAME_RGB, FRAME_DEPTH)])
    split = write_split(tmp_path, f"{FRAME_RGB} {FRAME_DEPTH}")
    (source,) = open_sources([{"kind": "vkitti", "root": tmp_path, "split": split, "crop": [100, 200]}])
    assert source[0].depth_m[0, 99, 0] == pytest.approx(375 + (521 % 100) / 100)
    with pytest.raises(CorruptSample, match="is 1242x375, smaller than the crop of 1000x400"):
        VirtualKitti(tmp_path, split, crop=(400, 1000))[0]


def test_missing_files_are_counted_and_named(tmp_path: Path, pictures: tuple[Path, Path]) -> None:
    link(pictures, tmp_path, [(FRAME_RGB, FRAME_DEPTH)])
    with pytest.raises(InputError, match=r"lacks 40294 of 40296 files: Scene02/15-deg-left/.*, …; download vkitti_2"):
        VirtualKitti(tmp_path)
    with pytest.raises(InputError, match=r"holds no Virtual KITTI 2: download"):
        VirtualKitti(tmp_path / "Scene02")
    with pytest.raises(InputError, match=r"is no folder: download"):
        VirtualKitti(tmp_path / "nowhere")


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "Scene01").mkdir()
    with pytest.raises(UsageError, match="has no 'Scene03': use Scene01, Scene02"):
        VirtualKitti(tmp_path, scenes=["Scene03"])
    with pytest.raises(UsageError, match=r"crop=\[3\] is no size"):
        VirtualKitti(tmp_path, crop=[3])
