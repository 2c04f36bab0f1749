"""The test sets in their official layouts, folder and tar: what is read, what counts, what is missing or damaged."""

import gzip
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from marigold3d.errors import InputError, UsageError
from tests.data_paths import data_path
from tests.evaluation_sets import SIZES, pack, save, slope, write_frames, write_set
from training.data.samples import CorruptSample
from training.evaluation import judge_frames
from training.evaluation.archive import Tar, open_files
from training.evaluation.datasets import PROTOCOLS, DataSet
from training.evaluation.estimators import Constant, Ramp
from training.evaluation.frames import Frames

KINDS = tuple(PROTOCOLS)


@pytest.mark.parametrize("kind", KINDS)
def test_folder_and_tar_hold_the_same_samples(kind: str, tmp_path: Path) -> None:
    split = write_set(kind, tmp_path / "set", 2)
    folder, packed = DataSet(kind, tmp_path / "set", split), DataSet(kind, pack(tmp_path / "set"), split)
    assert len(folder) == len(packed) == 2
    for i in range(2):
        one, other = folder[i], packed[i]
        assert one.name == other.name == folder.names[i]
        for field in ("rgb", "depth_m", "valid"):
            assert torch.equal(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize("kind", ["nyu", "eth3d", "scannet", "diode"])
def test_depth_is_in_metres(kind: str, tmp_path: Path) -> None:
    sample = DataSet(kind, tmp_path / "set", write_set(kind, tmp_path / "set", 2))[1]
    assert sample.rgb.shape == (3, *SIZES[kind])
    assert sample.rgb.dtype == torch.uint8
    np.testing.assert_allclose(sample.depth_m[0].numpy(), slope(kind, 1), atol=6e-4)


def counting(kind: str, depth: np.ndarray, tmp_path: Path, **options: str) -> np.ndarray:
    """Which pixels (H, W) of a one-image set of this depth count."""
    split = write_set(kind, tmp_path / "set", 1, lambda *_: depth)
    return DataSet(kind, tmp_path / "set", split, **options)[0].valid[0].numpy()  # type: ignore[arg-type]


def test_nyu_counts_in_eigens_crop(tmp_path: Path) -> None:
    expected = np.zeros(SIZES["nyu"], bool)
    expected[45:471, 41:601] = True
    expected[100, 100] = expected[200, 200] = False
    depth = np.full(SIZES["nyu"], 5.0)
    depth[100, 100], depth[200, 200], depth[201, 200] = 0.0, 10.0, 9.999
    np.testing.assert_array_equal(counting("nyu", depth, tmp_path), expected)


@pytest.mark.parametrize(
    ("mask", "rows", "columns"),
    [
        ("eigen", slice(117, 321), slice(43, 1172)),  # 0.3324324 * 352 = 117.02, 0.91351351 * 352 = 321.56
        ("garg", slice(143, 349), slice(43, 1172)),  # 0.40810811 * 352 = 143.65, 0.99189189 * 352 = 349.15
        ("none", slice(0, 352), slice(0, 1216)),
    ],
)
def test_kitti_is_cropped_to_the_benchmark_and_counts_in_a_rectangle(
    mask: str, rows: slice, columns: slice, tmp_path: Path
) -> None:
    depth = slope("kitti", 0)
    depth[300, 600] = 80.0
    split = write_set("kitti", tmp_path / "set", 1, lambda *_: depth)
    sample = DataSet("kitti", tmp_path / "set", split, mask)[0]  # type: ignore[arg-type]
    assert sample.rgb.shape == (3, 352, 1216)
    np.testing.assert_allclose(sample.depth_m[0].numpy(), depth[23:, 13:1229], atol=1 / 512)  # 375 - 352, (1242-1216)/2
    expected = np.zeros((352, 1216), bool)
    expected[rows, columns] = True
    expected[300 - 23, 600 - 13] = False
    np.testing.assert_array_equal(sample.valid[0].numpy(), expected)


def test_eth3d_has_no_depth_where_it_is_infinite(tmp_path: Path) -> None:
    depth = slope("eth3d", 0)
    depth[3, 4], depth[5, 6] = np.inf, 1000.0
    valid = counting("eth3d", depth, tmp_path)
    assert not valid[3, 4]
    assert valid.sum() == valid.size - 1


def test_diode_counts_where_its_mask_says(tmp_path: Path) -> None:
    valid = counting("diode", np.full(SIZES["diode"], 400.0), tmp_path)  # beyond the range that depth is clipped to
    assert not valid[:4].any()
    assert valid[4:].all()


def test_rows_without_depth_are_dropped(tmp_path: Path) -> None:
    split = write_set("kitti", tmp_path / "set", 2)
    split.write_text(split.read_text() + "\n2011_09_26/none.png None 721.5377\n")
    assert len(DataSet("kitti", tmp_path / "set", split)) == 2


# -- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_missing_files_are_counted_and_named(packed: bool, tmp_path: Path) -> None:
    split = write_set("scannet", tmp_path / "set", 8)
    for number in (2, 3, 5, 6):
        (tmp_path / f"set/scene0000_00/depth/{number:06d}.png").unlink()
    root = pack(tmp_path / "set") if packed else tmp_path / "set"
    with pytest.raises(InputError, match=r"lacks 4 of 16 files: .*000002\.png, .*000003\.png, .*000005\.png, …;"):
        DataSet("scannet", root, split)


def test_half_a_tar_lacks_what_comes_after_its_end(tmp_path: Path) -> None:
    split = write_set("scannet", tmp_path / "set", 30)
    tar = pack(tmp_path / "set")
    content = tar.read_bytes()
    tar.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"lacks \d+ of 60 files"):
        DataSet("scannet", tar, split)


def test_a_member_that_the_tar_cuts_off_is_a_corrupt_sample(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        (tmp_path / "big").write_bytes(bytes(50_000))
        tar.add(tmp_path / "big", "./x/big")
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:20_000])
    files = Tar(tmp_path / "a.tar")
    with pytest.raises(CorruptSample, match="x/big"):
        files.open("x/big")


def test_a_compressed_tar_and_no_tar_say_what_to_do(tmp_path: Path) -> None:
    write_set("scannet", tmp_path / "set", 1)
    (tmp_path / "set.tar.gz").write_bytes(gzip.compress(pack(tmp_path / "set").read_bytes()))
    for name in ("set.tar.gz", "set.txt"):
        with pytest.raises(InputError, match="is no plain tar"):
            open_files(tmp_path / name)
    with pytest.raises(InputError, match="neither a folder nor a tar"):
        open_files(tmp_path / "nowhere")


def test_the_official_list_is_found_beside_the_data_or_asked_for(tmp_path: Path) -> None:
    split = write_set("scannet", tmp_path / "set", 2)
    with pytest.raises(UsageError, match=r"scannet_val_sampled_list_800_1\.txt.*prs-eth/Marigold"):
        DataSet("scannet", tmp_path / "set")
    split.rename(tmp_path / "scannet_val_sampled_list_800_1.txt")
    assert len(DataSet("scannet", pack(tmp_path / "set"))) == 2


def test_a_list_of_another_set_is_refused(tmp_path: Path) -> None:
    split = write_set("scannet", tmp_path / "set", 2)
    with pytest.raises(InputError, match="a row of 2 paths, diode needs 3"):
        DataSet("diode", tmp_path / "set", split)


# -- what is damaged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_is_named(kind: str, tmp_path: Path) -> None:
    split = write_set(kind, tmp_path / "set", 1)
    root = tmp_path / "set"
    truth = split.read_text().split()[1]
    (root / truth).write_bytes((root / truth).read_bytes()[:-40])
    with pytest.raises(CorruptSample, match=truth):
        _ = DataSet(kind, root, split)[0]


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    split = write_set("scannet", tmp_path / "set", 1)
    save(tmp_path / "set/scene0000_00/color/000000.jpg", np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(CorruptSample, match="the picture is 30x20, its depth 32x24"):
        _ = DataSet("scannet", tmp_path / "set", split)[0]


def test_kitti_needs_pictures_larger_than_the_crop(tmp_path: Path) -> None:
    split = write_set("kitti", tmp_path / "set", 1)
    save(tmp_path / "set" / split.read_text().split()[0], np.zeros((300, 1242, 3), np.uint8))
    with pytest.raises(CorruptSample, match="1242x300 px, the KITTI benchmark's crop needs 1216x352"):
        _ = DataSet("kitti", tmp_path / "set", split)[0]


# -- real frames ------------------------------------------------------------------------------------------------------


def test_frames_of_every_kind_are_read(tmp_path: Path) -> None:
    frames = Frames(write_frames(tmp_path))
    assert [frames.groups.count(name) for name in ("tum_frame", "fastdepth_nyu", "slambook", "kitchen")] == [1, 1, 2, 8]
    for i in range(len(frames)):
        sample = frames[i]
        assert sample.name == frames.names[i]
        np.testing.assert_allclose(sample.depth_m[0].numpy(), slope("scannet", 0), atol=6e-4)


def test_the_frames_of_a_clip_are_those_that_the_depths_are_of(tmp_path: Path) -> None:
    """Frame k is grey of level 8 k; 12 depths, of frames 0, 2, …, 22: eight of them, spread, without the ends."""
    frames = Frames(write_frames(tmp_path))
    numbers = [int(name.split("/")[1]) for name in frames.names if name.startswith("kitchen")]
    assert len(set(numbers)) == 8
    assert (min(numbers), max(numbers)) == (2, 20)
    for i, name in enumerate(frames.names):
        if name.startswith("kitchen"):
            assert float(frames[i].rgb.float().mean()) == pytest.approx(8 * int(name.split("/")[1]), abs=6)


def test_frames_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds none of the folders tum_frame"):
        Frames(tmp_path)
    write_frames(tmp_path)
    (tmp_path / "slambook/depth/2.png").unlink()
    with pytest.raises(InputError, match=r"no depth for 2\.png"):
        Frames(tmp_path)


def test_a_clip_without_the_frame_of_a_depth_is_a_corrupt_sample(tmp_path: Path) -> None:
    write_frames(tmp_path)
    for number in range(0, 24, 2):
        path = tmp_path / f"kitchen/depth/{number:06d}.png"
        path.rename(path.with_name(f"{number + 100:06d}.png"))
    frames = Frames(tmp_path)
    with pytest.raises(CorruptSample, match=r"clip\.mp4: it has no frame 1"):
        _ = frames[frames.groups.index("kitchen")]


def test_judging_frames_takes_means_of_sets_not_of_frames(tmp_path: Path) -> None:
    write_frames(tmp_path)
    far = slope("scannet", 0)
    far[:, 16:] = 9.0
    Image.fromarray((far * 5000).astype(np.uint16)).save(tmp_path / "tum_frame/TUM_depth.png")
    found = judge_frames(Constant(), tmp_path)
    sets = [found[name]["abs_rel"] for name in ("tum_frame", "fastdepth_nyu", "slambook", "kitchen")]
    assert found["mean"]["abs_rel"] == pytest.approx(np.mean(sets))
    assert sets[0] > 1.1 * sets[1]
    assert sets[1] == pytest.approx(sets[3], rel=1e-3)
    z = slope("scannet", 0)
    assert sets[1] == pytest.approx(np.mean(np.abs(z.mean() - z) / z), rel=1e-3)


@pytest.mark.data
def test_the_baselines_on_the_real_frames() -> None:
    root = data_path("hololens").parent
    constant, ramp = judge_frames(Constant(), root)["mean"], judge_frames(Ramp(), root)["mean"]
    assert (constant["abs_rel"], constant["delta1"]) == pytest.approx((0.408, 0.411), abs=6e-4)
    assert (ramp["abs_rel"], ramp["delta1"]) == pytest.approx((0.260, 0.592), abs=6e-4)
