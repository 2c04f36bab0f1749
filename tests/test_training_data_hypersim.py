"""Hypersim in its published layout and preprocessed: tone mapping, planes, masks, conversion, missing and bad files."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from marigold3d.errors import InputError, UsageError
from training.data import hypersim, open_sources
from training.data.hypersim import Hypersim, HypersimRaw
from training.data.hypersim_frames import FOCAL_PX, Frame, listed_frames, planar_depth, tone_mapped
from training.data.mixing import MixedBatches, read_by_workers
from training.data.samples import CorruptSample

REPOSITORY = Path(__file__).parents[1]
HEIGHT, WIDTH = 12, 16
SPLIT_HEADER = "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name"


def write_frame(root: Path, frame: Frame, color: np.ndarray, distance_m: np.ndarray, entity: np.ndarray) -> None:
    """A frame as dataset_download_images.py leaves it."""
    types = (np.float16, np.float16, np.int32)
    for path, values, dtype in zip(frame.files, (color, distance_m, entity), types, strict=True):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(root / path, "w") as file:
            file.create_dataset("dataset", data=values.astype(dtype), compression="gzip")


def scene(depth_m: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grey wall, square to the camera, `depth_m` away: color, distance, entity; the first pixel sees nothing."""
    distance_m = np.full((HEIGHT, WIDTH), depth_m) / planar_depth(np.ones((HEIGHT, WIDTH)))
    color, entity = np.full((HEIGHT, WIDTH, 3), 0.5), np.full((HEIGHT, WIDTH), 7)
    distance_m[0, 0], entity[0, 0], color[0, 0] = np.nan, -1, 100.0
    return color, distance_m, entity


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three public frames of train, one of val, and one that was not released."""
    root = tmp_path / "raw"
    lines = [SPLIT_HEADER]
    for number, (scene_name, partition, public) in enumerate(
        [
            ("ai_001_001", "train", True),
            ("ai_001_001", "train", True),
            ("ai_001_002", "train", True),
            ("ai_002_001", "val", True),
            ("ai_002_001", "val", False),
        ]
    ):
        lines.append(f"{scene_name},cam_00,{number},{public},,{partition}")
        if public:
            write_frame(root, Frame(scene_name, "cam_00", number), *scene(1.0 + number))
    (root / "split.csv").write_text("\n".join(lines))
    return root


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "training.data.hypersim", *map(str, arguments)]


def convert(root: Path, out: Path, *more: str) -> int:
    return hypersim.main(["--raw", str(root), "--split-csv", str(root / "split.csv"), "--out", str(out), *more])


def test_paths_are_those_of_the_published_layout() -> None:
    frame = Frame("ai_053_003", "cam_01", 7)
    assert frame.color == "ai_053_003/images/scene_cam_01_final_hdf5/frame.0007.color.hdf5"
    assert frame.distance == "ai_053_003/images/scene_cam_01_geometry_hdf5/frame.0007.depth_meters.hdf5"
    assert frame.entity == "ai_053_003/images/scene_cam_01_geometry_hdf5/frame.0007.render_entity_id.hdf5"
    assert frame.rgb_name == "ai_053_003/rgb_cam_01_fr0007.png"
    assert frame.depth_name == "ai_053_003/depth_plane_cam_01_fr0007.png"


def test_distances_to_a_plane_become_one_depth() -> None:
    u, v = np.meshgrid(np.arange(1024) + 0.5 - 512, np.arange(768) + 0.5 - 384)
    distance_m = 3.0 * np.sqrt(u**2 + v**2 + FOCAL_PX**2) / FOCAL_PX  # of z = 3 m, along every ray
    assert planar_depth(distance_m) == pytest.approx(3.0, abs=1e-5)


def test_depth_of_single_pixels_by_hand() -> None:
    depth_m = planar_depth(np.full((768, 1024), 10.0))
    assert depth_m[384, 512] == pytest.approx(10.0, abs=1e-5)  # half a pixel off the axis
    assert depth_m[0, 0] == pytest.approx(10 * 886.81 / np.sqrt(511.5**2 + 383.5**2 + 886.81**2))  # 8.1117
    assert depth_m[0, 0] == pytest.approx(8.112, abs=1e-3)
    assert np.degrees(2 * np.arctan(512 / FOCAL_PX)) == pytest.approx(60.0, abs=1e-3)


def test_smaller_pictures_have_the_same_field_of_view() -> None:
    whole, half = planar_depth(np.ones((768, 1024))), planar_depth(np.ones((384, 512)))
    corners = whole.reshape(384, 2, 512, 2).mean((1, 3))
    assert half == pytest.approx(corners, abs=1e-3)


def test_the_ninetieth_percentile_of_brightness_becomes_four_fifths() -> None:
    grey = np.linspace(0.0, 10.0, 101)[None].repeat(2, 0)  # its 90th percentile is 9
    color = np.repeat(grey[..., None], 3, 2)
    mapped = tone_mapped(color, np.ones((2, 101), bool))
    assert mapped[0, 90].tolist() == pytest.approx([0.8] * 3, abs=1e-5)
    # (9 s)^(1/2.2) = 0.8, so s = 0.8^2.2 / 9; 1 becomes (0.8^2.2 / 9)^(1/2.2) = 0.8 * 9^(-1/2.2)
    assert mapped[0, [0, 10, 100], 0].tolist() == pytest.approx(
        [0.0, 0.8 * 9 ** (-1 / 2.2), 0.8 * (10 / 9) ** (1 / 2.2)], abs=1e-5
    )


def test_colours_weigh_as_ccir_601() -> None:
    color = np.zeros((1, 1, 3))
    color[..., 0] = 1.0  # brightness 0.3
    mapped = tone_mapped(color, np.ones((1, 1), bool))
    assert mapped[0, 0].tolist() == pytest.approx([min(1.0, 0.8 * 0.3 ** (-1 / 2.2)), 0.0, 0.0])


def test_what_is_not_seen_does_not_set_the_exposure() -> None:
    color = np.full((1, 10, 3), 0.5)
    color[0, 5:] = 1000.0
    seen = np.arange(10)[None] < 5
    mapped = tone_mapped(color, seen)
    assert mapped[0, :5] == pytest.approx(0.8, abs=1e-5)
    assert (mapped[0, 5:] == 1.0).all()


def test_exposure_of_dark_and_of_empty_pictures() -> None:
    assert (tone_mapped(np.full((2, 2, 3), 5e-5), np.ones((2, 2), bool)) == 0).all()
    unscaled = tone_mapped(np.full((2, 2, 3), 0.25), np.zeros((2, 2), bool))
    assert unscaled == pytest.approx(0.25 ** (1 / 2.2))
    assert np.isfinite(tone_mapped(np.array([[[np.nan, np.inf, -1.0]]]), np.ones((1, 1), bool))).all()


def test_raw_frames_are_samples(raw: Path) -> None:
    source = HypersimRaw(raw, raw / "split.csv")
    assert len(source) == 3
    sample = source[1]
    assert sample.name == "ai_001_001/rgb_cam_00_fr0001.png"
    assert sample.rgb.shape == (3, HEIGHT, WIDTH)
    assert sample.depth_m.shape == (1, HEIGHT, WIDTH)
    assert sample.depth_m[0, 1:].numpy() == pytest.approx(2.0, rel=2e-3)  # float16 distances
    assert sample.depth_m[0, 0, 0] == 0.0
    assert not sample.valid[0, 0, 0]
    assert int(sample.valid.sum()) == HEIGHT * WIDTH - 1
    assert (sample.rgb[:, 1:] == 204).all()  # 0.8
    assert (sample.rgb[:, 0, 0] == 255).all()


def test_only_released_frames_of_a_partition_are_used(raw: Path) -> None:
    assert [f.number for f in listed_frames(raw / "split.csv")["val"]] == [3]
    assert len(HypersimRaw(raw, raw / "split.csv", "val")) == 1
    assert len(HypersimRaw(raw)) == 4  # whatever is there
    with pytest.raises(UsageError, match="no partition 'test': use train, val"):
        HypersimRaw(raw, raw / "split.csv", "test")


def test_missing_raw_files_are_counted_and_named(raw: Path) -> None:
    gone = Frame("ai_001_002", "cam_00", 2)
    (raw / gone.distance).unlink()
    (raw / gone.entity).unlink()
    with pytest.raises(InputError, match=r"lacks 2 of 9 files: ai_001_002/.*depth_meters.hdf5.*download it with"):
        HypersimRaw(raw, raw / "split.csv")


def test_damaged_raw_files_are_named(raw: Path) -> None:
    frame = Frame("ai_001_001", "cam_00", 0)
    whole = (raw / frame.distance).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not hdf5" * 100):
        (raw / frame.distance).write_bytes(damaged)
        with pytest.raises(CorruptSample, match=r"frame.0000.depth_meters.hdf5"):
            HypersimRaw(raw)[0]
    with h5py.File(raw / frame.distance, "w") as file:
        file["other"] = np.zeros(3)
    with pytest.raises(CorruptSample, match=r"frame.0000.depth_meters.hdf5"):
        HypersimRaw(raw)[0]
    with h5py.File(raw / frame.distance, "w") as file:
        file["dataset"] = np.zeros((3, 5))
    with pytest.raises(CorruptSample, match="do not fit"):
        HypersimRaw(raw)[0]


def test_the_command_writes_the_preprocessed_form(raw: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("--raw", raw, "--split-csv", raw / "split.csv", "--out", tmp_path / "out"),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "3 frames" in done.stdout
    train = tmp_path / "out" / "train"
    assert (train / "filename_list_train.txt").read_text().splitlines() == [
        "ai_001_001/rgb_cam_00_fr0000.png ai_001_001/depth_plane_cam_00_fr0000.png",
        "ai_001_001/rgb_cam_00_fr0001.png ai_001_001/depth_plane_cam_00_fr0001.png",
        "ai_001_002/rgb_cam_00_fr0002.png ai_001_002/depth_plane_cam_00_fr0002.png",
    ]
    depth = np.array(Image.open(train / "ai_001_002/depth_plane_cam_00_fr0002.png"))
    assert depth.dtype == np.uint16
    assert depth[0, 0] == 0
    assert depth[1:].astype(int) == pytest.approx(3000, abs=6)
    raw_sample = HypersimRaw(raw, raw / "split.csv")[2]
    sample = Hypersim(train, train / "filename_list_train.txt")[2]
    assert (sample.rgb == raw_sample.rgb).all()
    assert (sample.valid == raw_sample.valid).all()
    assert (sample.depth_m - raw_sample.depth_m).abs().max() <= 0.0005001
    assert sample.name == raw_sample.name
    (row,) = (r for r in csv.DictReader((train / "filename_meta_train.csv").open()) if r["frame_id"] == "2")
    assert float(row["invalid_ratio"]) == pytest.approx(1 / (HEIGHT * WIDTH), abs=1e-5)
    assert float(row["depth_max"]) == pytest.approx(3.0, abs=6e-3)
    assert float(row["rgb_min"]) == 204


def test_two_workers_write_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    assert convert(raw, tmp_path / "one") == 0
    assert convert(raw, tmp_path / "two", "--workers", "2", "--quiet") == 0
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 2 * 4 + 4
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_conversion_goes_on_where_it_stopped(raw: Path, tmp_path: Path) -> None:
    out, train = tmp_path / "out", tmp_path / "out" / "train"
    assert convert(raw, out) == 0
    whole = {p: p.read_bytes() for p in train.rglob("*.*")}
    table = train / "filename_meta_train.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:2]) + lines[2][:25])  # killed while writing the second frame's row
    (train / "filename_list_train.txt").unlink()
    untouched = train / "ai_001_001/rgb_cam_00_fr0000.png"
    before = untouched.stat().st_mtime_ns
    assert convert(raw, out) == 0
    assert untouched.stat().st_mtime_ns == before
    assert {p: p.read_bytes() for p in train.rglob("*.*")} == whole


def test_conversion_can_be_interrupted(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    lines = [SPLIT_HEADER]
    for number in range(400):
        write_frame(root, Frame("ai_001_001", "cam_00", number), *scene())
        lines.append(f"ai_001_001,cam_00,{number},True,,train")
    (root / "split.csv").write_text("\n".join(lines))
    table = tmp_path / "out" / "train" / "filename_meta_train.csv"
    running = subprocess.Popen(
        command("--raw", root, "--split-csv", root / "split.csv", "--out", tmp_path / "out"),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (table.exists() and table.read_text().count("\n") > 3) and running.poll() is None:
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("interrupted: ")
    assert 3 < table.read_text().count("\n") < 401
    assert convert(root, tmp_path / "out") == 0
    assert len(Hypersim(tmp_path / "out/train", tmp_path / "out/train/filename_list_train.txt")) == 400


def test_conversion_of_what_is_there(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (raw / Frame("ai_001_002", "cam_00", 2).color).unlink()
    assert convert(raw, tmp_path / "out") == 3
    assert "lacks 1 of 9 files" in capsys.readouterr().err
    assert convert(raw, tmp_path / "out", "--present", "--partitions", "train") == 0
    assert "2 frames" in capsys.readouterr().out


def test_a_damaged_frame_among_few_fails_the_conversion(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / Frame("ai_001_001", "cam_00", 1).color).write_bytes(b"cut")
    assert convert(raw, tmp_path / "out") == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 1 of 3 frames cannot be read, more than 1%")
    assert "frame.0001.color.hdf5" in error
    assert (tmp_path / "out/train/ai_001_002/rgb_cam_00_fr0002.png").exists()  # what could be read is kept


def test_depth_beyond_sixteen_bits_is_unknown_not_wrapped(raw: Path, tmp_path: Path) -> None:
    write_frame(raw, Frame("ai_001_001", "cam_00", 0), *scene(70.0))
    assert convert(raw, tmp_path / "out") == 0
    assert not Hypersim(tmp_path / "out/train")[0].valid.any()


def test_a_split_may_be_the_table_of_what_is_invalid(raw: Path, tmp_path: Path) -> None:
    empty = np.full((HEIGHT, WIDTH), -1)
    empty[:3] = 5
    write_frame(raw, Frame("ai_001_001", "cam_00", 0), np.ones((HEIGHT, WIDTH, 3)), np.ones((HEIGHT, WIDTH)), empty)
    assert convert(raw, tmp_path / "out") == 0
    train, table = tmp_path / "out/train", tmp_path / "out/train/filename_meta_train.csv"
    assert len(Hypersim(train, table)) == 3
    (source,) = open_sources([{"kind": "hypersim", "root": train, "split": table, "max_invalid": 0.5}])
    assert [source[i].name[-8:] for i in range(len(source))] == ["0001.png", "0002.png"]
    with pytest.raises(InputError, match="lists no frame"):
        Hypersim(train, table, max_invalid=0.0)
    with pytest.raises(UsageError, match="max_invalid needs split"):
        Hypersim(train, max_invalid=0.5)


def test_depth_counts_below_sixty_five_metres(tmp_path: Path) -> None:
    depth = np.array([[0, 1, 64_999], [65_000, 65_001, 65_535]], np.uint16)
    Image.fromarray(depth).save(tmp_path / "depth_plane_cam_00_fr0000.png")
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "rgb_cam_00_fr0000.png")
    sample = Hypersim(tmp_path)[0]
    assert sample.valid[0].tolist() == [[False, True, True], [False, False, False]]
    assert sample.depth_m[0].numpy() == pytest.approx(depth / 1000)
    assert sample.rgb[:, 0, 0].tolist() == [1, 2, 3]


def test_a_preprocessed_folder_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no rgb_cam_\*.png: write it with python -m training.data.hypersim"):
        Hypersim(tmp_path)
    Image.new("RGB", (3, 2)).save(tmp_path / "rgb_cam_00_fr0000.png")
    with pytest.raises(InputError, match=r"lacks 1 of 2 files: depth_plane_cam_00_fr0000.png"):
        Hypersim(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        Hypersim(tmp_path / "nowhere", None)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_skips_a_png_cut_short(raw: Path, tmp_path: Path, workers: int) -> None:
    assert convert(raw, tmp_path / "out") == 0
    train = tmp_path / "out/train"
    whole = (train / "ai_001_001/depth_plane_cam_00_fr0001.png").read_bytes()
    (train / "ai_001_001/depth_plane_cam_00_fr0001.png").write_bytes(whole[: len(whole) // 2])
    batches = MixedBatches(open_sources([{"kind": "hypersim", "root": train}]), [1], 3, seed=0)
    (batch,) = read_by_workers(batches, [0], workers)
    assert not any("fr0001" in name for name in batch.names)
    assert batches.skipped == len(batch.problems) >= 1  # twice, if the next epoch begins with it
    assert batch.problems[0].startswith("ai_001_001/depth_plane_cam_00_fr0001.png: ")
    assert set(batch.depth_m[:, 0, 5, 5].round().tolist()) == {1.0, 3.0}
