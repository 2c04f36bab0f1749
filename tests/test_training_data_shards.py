"""Shards: what is written is read back, in order, from any disk, also by webdataset; stops, damage, missing parts."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from marigold3d.errors import InputError, UsageError
from marigold3d.progress import run
from training.data import open_sources, shards
from training.data.mixing import MixedBatches
from training.data.samples import CorruptSample, Sample
from training.data.shard_writing import packed, write_index, write_shards
from training.data.shards import Shards, index_path

REPOSITORY = Path(__file__).parents[1]
COUNT = 23


@pytest.fixture(scope="module")
def hypersim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preprocessed Hypersim of 23 pictures of 8 x 6 px: noise, with holes and some depth out of range."""
    folder, rng = tmp_path_factory.mktemp("hypersim"), np.random.default_rng(0)
    for number in range(COUNT):
        depth = rng.integers(1, 65_536, (6, 8)).astype(np.uint16)
        depth[rng.random((6, 8)) < 0.2] = 0
        Image.fromarray(depth).save(folder / f"depth_plane_cam_00_fr{number:04d}.png")
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).save(folder / f"rgb_cam_00_fr{number:04d}.png")
    return folder


@pytest.fixture
def mapping(hypersim: Path) -> dict[str, object]:
    return {"kind": "hypersim", "root": str(hypersim)}


def written(mapping: dict[str, object], out: Path) -> Path:
    assert run(write_shards(mapping, out, samples_per_shard=5)) == COUNT
    return out


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "training.data.shards", *map(str, arguments)]


def test_every_sample_comes_back_at_its_place(mapping: dict[str, object], tmp_path: Path) -> None:
    (source,) = open_sources([mapping])
    back = Shards(written(mapping, tmp_path))
    assert len(back) == COUNT
    assert len(list(tmp_path.glob("*.tar"))) == 5
    for i in range(COUNT):
        a, b = source[i], back[i]
        assert torch.equal(a.rgb, b.rgb)
        assert torch.equal(a.valid, b.valid)
        assert torch.equal(torch.where(a.valid, a.depth_m, 0.0), b.depth_m)
        assert a.name == b.name
    with pytest.raises(IndexError):
        back[COUNT]


def test_the_same_source_gives_the_same_bytes(mapping: dict[str, object], tmp_path: Path) -> None:
    a, b = written(mapping, tmp_path / "a"), written(mapping, tmp_path / "b")
    for path in sorted(a.iterdir()):
        assert path.read_bytes() == (b / path.name).read_bytes()


def test_webdataset_reads_them(mapping: dict[str, object], tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    (source,) = open_sources([mapping])
    written(mapping, tmp_path)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    read = list(wds.WebDataset(urls, shardshuffle=False))
    assert len(read) == COUNT
    for i, sample in enumerate(read):
        assert sample["__key__"] == f"{i:09d}"
        notes = json.loads(sample["json"])
        assert notes == {"name": source[i].name, "unit_m": 0.001}
        assert (np.array(Image.open(io.BytesIO(sample["rgb.png"]))) == source[i].rgb.permute(1, 2, 0).numpy()).all()
        depth_m = np.array(Image.open(io.BytesIO(sample["depth.png"]))) * notes["unit_m"]
        assert depth_m[source[i].valid[0].numpy()] == pytest.approx(source[i].depth_m[source[i].valid].numpy())


def test_what_webdataset_writes_is_read(mapping: dict[str, object], tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    (source,) = open_sources([mapping])
    with wds.TarWriter(str(tmp_path / "theirs.tar")) as tar:
        for i in range(4):
            tar.write({"__key__": f"x/{i}", **packed(source[i])})
    assert shards.main(["--index", str(tmp_path)]) == 0
    back = Shards(tmp_path)
    assert [back[i].name for i in range(4)] == [source[i].name for i in range(4)]
    assert torch.equal(back[3].rgb, source[3].rgb)


def sample_of(depth_m: list[float], valid: list[bool]) -> Sample:
    rgb = torch.zeros(3, 1, len(depth_m), dtype=torch.uint8)
    return Sample(rgb, torch.tensor(depth_m)[None, None], torch.tensor(valid)[None, None], "it")


def depth_of(members: dict[str, bytes]) -> tuple[list[int], float]:
    values = np.array(Image.open(io.BytesIO(members["depth.png"])))[0].tolist()
    return values, json.loads(members["json"])["unit_m"]


def test_depth_is_in_millimetres_or_where_that_is_too_far_in_centimetres() -> None:
    assert depth_of(packed(sample_of([1.2344, 65.535], [True, True]))) == ([1234, 65535], 0.001)
    assert depth_of(packed(sample_of([1.2344, 79.99], [True, True]))) == ([123, 7999], 0.01)
    assert depth_of(packed(sample_of([1.2344, 300.0], [True, False]))) == ([1234, 0], 0.001)
    assert depth_of(packed(sample_of([1e-4, 0.0], [True, False]))) == ([1, 0], 0.001)  # what counts stays so
    assert depth_of(packed(sample_of([5.0, 6.0], [False, False]))) == ([0, 0], 0.001)
    with pytest.raises(UsageError, match="it: depth up to 700 m is beyond 16 bits"):
        packed(sample_of([700.0], [True]))


def test_several_disks_are_one_source(mapping: dict[str, object], tmp_path: Path) -> None:
    whole, moved = written(mapping, tmp_path / "a"), tmp_path / "b"
    names = [Shards(whole)[i].name for i in range(COUNT)]
    moved.mkdir()
    for shard in sorted(whole.glob("*.tar"))[3:]:
        index_path(shard).rename(moved / index_path(shard).name)
        shard.rename(moved / shard.name)
    with pytest.raises(InputError, match=r"2 of 5 shards are missing or cut short: shard-000003.tar, shard-000004"):
        Shards(whole)
    assert shards.main(["--index", str(whole)]) == shards.main(["--index", str(moved)]) == 0
    (both,) = open_sources([{"kind": "shards", "root": [str(whole), str(moved)]}])
    assert [both[i].name for i in range(COUNT)] == names


def test_batches_from_shards_are_those_from_files(mapping: dict[str, object], tmp_path: Path) -> None:
    written(mapping, tmp_path)
    files = MixedBatches(open_sources([mapping]), [1], 4, seed=1)
    packed_ones = MixedBatches(open_sources([{"kind": "shards", "root": tmp_path}]), [1], 4, seed=1)
    for k in range(12):
        a, b = files.batch(k), packed_ones.batch(k)
        assert a.names == b.names
        assert torch.equal(a.rgb, b.rgb)
        assert torch.equal(a.depth_m * a.valid, b.depth_m * b.valid)


def test_the_command_and_parts_of_several_machines(hypersim: Path, tmp_path: Path) -> None:
    source = ("--from", "kind=hypersim", f"root={hypersim}", "resize=[3, 4]")
    done = subprocess.run(
        command(*source, "--out", tmp_path / "all", "--samples-per-shard", "10"),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"{COUNT} samples" in done.stdout
    for first in ("10", "0"):
        part = ["--first", first, "--count", "10" if first == "0" else "99"]
        assert shards.main([*source, "--out", str(tmp_path / "parts"), "--samples-per-shard", "10", *part]) == 0
    for path in (tmp_path / "all").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()
    assert (tmp_path / "all/index.json").read_text() == (tmp_path / "parts/index.json").read_text()
    assert Shards(tmp_path / "parts")[0].rgb.shape == (3, 3, 4)


def test_writing_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    arguments = ["--from", "kind=procedural", "height=24", "width=32", "--count", "60", "--samples-per-shard", "4"]
    out = tmp_path / "out"
    running = subprocess.Popen(command(*arguments, "--out", out), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    while len(list(out.glob("shard-*.json"))) < 2 and running.poll() is None:
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted: whole shards are kept, the same command goes on"
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.tar") if index_path(path).exists()}
    assert 2 <= len(finished) < 15
    assert not list(out.glob(".*partial*"))
    assert shards.main([*arguments, "--out", str(out), "--quiet"]) == 0
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
    assert len(Shards(out)) == 60


def test_other_samples_do_not_go_into_the_same_folder(
    mapping: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(mapping, tmp_path)
    arguments = ["--from", "kind=hypersim", f"root={mapping['root']}", "resize=[3, 4]", "--samples-per-shard", "5"]
    assert shards.main([*arguments, "--out", str(tmp_path)]) == 7
    assert "shard-000000.tar was made of something else: choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--from", "kind=procedural", "height=8", "width=8"], 2, "procedural has no end: say how many"),
        (["--from", "kind"], 2, "write key=value"),
        (["--from", "kind=procedural", "height=[", "width=8"], 2, "'[' is no YAML value"),
        (["--from", "kind=procedural", "height=8", "width=8", "--first", "7"], 2, "must be a multiple of"),
        (["--from", "kind=procedural", "height=8", "width=8", "--samples-per-shard", "0"], 2, "give 1 or more"),
        (["--from", "kind=hypersim", "root=/nowhere"], 3, "/nowhere is no folder"),
    ],
)
def test_commands_that_do_not_fit(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shards.main([*arguments, "--out", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error


def test_damage_in_a_shard_is_a_corrupt_sample(mapping: dict[str, object], tmp_path: Path) -> None:
    shard = written(mapping, tmp_path) / "shard-000001.tar"
    with tarfile.open(shard) as tar:
        picture, notes = tar.getmember("000000007.rgb.png"), tar.getmember("000000008.json")
    data = bytearray(shard.read_bytes())
    data[picture.offset_data + picture.size // 2] ^= 255
    data[notes.offset_data] = ord("?")
    shard.write_bytes(data)
    source = Shards(tmp_path)
    with pytest.raises(CorruptSample, match=r"shard-000001.tar/000000007.rgb.png: "):
        source[7]
    with pytest.raises(CorruptSample, match=r"shard-000001.tar/000000008: its .json cannot be read"):
        source[8]
    assert source[6].rgb.shape == (3, 6, 8)


def test_a_shard_cut_short_is_named(mapping: dict[str, object], tmp_path: Path) -> None:
    shard = written(mapping, tmp_path) / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"1 of 5 shards are missing or cut short: shard-000002.tar; copy or write"):
        Shards(tmp_path)
    with pytest.raises(InputError, match=r"shard-000002.tar is cut short: copy it again"):
        write_index(tmp_path)


def test_folders_and_files_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no index.json: .* --index DIR"):
        Shards(tmp_path)
    (tmp_path / "index.json").write_text('{"shards": [{"file"')
    with pytest.raises(InputError, match=r"index.json is damaged"):
        Shards(tmp_path)
    (tmp_path / "index.json").write_text('{"shards": []}')
    with pytest.raises(InputError, match="holds no samples"):
        Shards(tmp_path)


def test_indexing_other_tar_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shards.main(["--index", str(tmp_path)]) == 3
    assert "holds no .tar files" in capsys.readouterr().err
    (tmp_path / "a.tar").write_bytes(b"no tar" * 500)
    assert shards.main(["--index", str(tmp_path)]) == 3
    assert "a.tar cannot be read as a tar file" in capsys.readouterr().err
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("7.rgb.png"))
    assert shards.main(["--index", str(tmp_path)]) == 3
    assert "sample 7 has only rgb.png: it needs rgb.png, depth.png, json" in capsys.readouterr().err


def test_samples_that_cannot_be_read_are_left_out_up_to_one_per_cent(hypersim: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hypersim"
    folder.mkdir()
    for number in range(200):
        for name in ("rgb", "depth_plane"):
            os.link(hypersim / f"{name}_cam_00_fr0000.png", folder / f"{name}_cam_00_fr{number:04d}.png")
    for number in (3, 150, 198):
        broken = folder / f"rgb_cam_00_fr{number:04d}.png"
        broken.unlink()
        broken.write_bytes(b"cut")
    mapping = {"kind": "hypersim", "root": str(folder)}
    with pytest.raises(InputError, match="3 of 200 samples of hypersim cannot be read"):
        run(write_shards(mapping, tmp_path / "out", samples_per_shard=50))
    with pytest.raises(InputError, match="3 of 200 samples of hypersim cannot be read"):  # and not when asked again
        run(write_shards(mapping, tmp_path / "out", samples_per_shard=50))
    assert run(write_shards(mapping, tmp_path / "fewer", first=0, count=150)) == 149
