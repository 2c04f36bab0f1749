"""The run folder: what may be created, resumed, replaced, given up; what counts as written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from marigold3d.errors import InputError, OutputError
from marigold3d.store import FORMAT_VERSION, FrameArray, Run
from tests.gui import depth_map, make_run

SHAPE = (4, 6, 8)


def create(path: Path, overwrite: bool = False, **settings: Any) -> Run:
    return Run.create(path, "clip.mp4", settings, overwrite=overwrite)


def finish(run: Run) -> Run:
    run.update(status="finished", units="m", report={"points": 5})
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# -- creating ---------------------------------------------------------------------------------------------------------


def test_a_new_run(tmp_path: Path) -> None:
    run = create(tmp_path / "deep" / "run", stride=3)
    manifest = json.loads((run.path / "run.json").read_text())
    assert manifest["format_version"] == FORMAT_VERSION
    assert (manifest["status"], manifest["clip"], manifest["settings"]) == ("running", "clip.mp4", {"stride": 3})
    assert not Run.open(run.path).finished


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    create(tmp_path / "run")
    assert (tmp_path / "run" / "run.json").is_file()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("photos", "file"):
        with pytest.raises(OutputError, match="not a run folder"):
            create(tmp_path / name, overwrite)
    assert contents(tmp_path) == {"file": b"dear", "photos/one.jpg": b"dear"}


def test_a_finished_run_is_replaced_only_on_demand(tmp_path: Path) -> None:
    finish(create(tmp_path / "run"))
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="--overwrite"):
        create(tmp_path / "run")
    assert contents(tmp_path) == before
    assert create(tmp_path / "run", overwrite=True).manifest["status"] == "running"


def test_an_unfinished_run_is_continued(tmp_path: Path) -> None:
    first = create(tmp_path / "run")
    assert first.begin_stage("depth", "d1") is False
    first.add_seconds("depth", 1.5)
    first.update()
    second = create(tmp_path / "run")
    assert second.begin_stage("depth", "d1") is True
    second.add_seconds("depth", 1.0)
    assert second.manifest["seconds"] == {"depth": 2.5}


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="part of the path is a file"):
        create(tmp_path / "file" / "run")


def test_a_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OutputError, match="disk is full"):
        create(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# -- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": "new"}', '{"format_version": null}', "\x00"])
def test_a_damaged_manifest(tmp_path: Path, text: str) -> None:
    """It is named, and the remedy that is named works."""
    create(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(text)
    for attempt in (Run.open, create):
        with pytest.raises(InputError, match=r"run\.json is damaged .*--overwrite") as caught:
            attempt(tmp_path / "run")
        assert "\n" not in str(caught.value)
    assert create(tmp_path / "run", overwrite=True).manifest["status"] == "running"


def test_a_newer_format(tmp_path: Path) -> None:
    create(tmp_path / "run").update(format_version=FORMAT_VERSION + 1)
    with pytest.raises(InputError, match="newer marigold3d"):
        Run.open(tmp_path / "run")
    with pytest.raises(InputError, match="newer marigold3d"):
        create(tmp_path / "run", overwrite=True)


def test_no_run_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="not a run folder"):
            Run.open(path)


def test_a_write_that_breaks_off_leaves_the_manifest_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finish(create(tmp_path / "run"))
    before = contents(tmp_path)
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OutputError, match="disk is full"):
        run.update(status="running")
    assert contents(tmp_path) == before


# -- giving up --------------------------------------------------------------------------------------------------------


def test_nothing_worth_keeping_leaves_nothing(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.begin_stage("poses", "p")
    run.save_arrays("cameras", {"T": np.eye(4)})
    run.give_up()
    assert list(tmp_path.iterdir()) == []


def test_foreign_files_survive(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    (run.path / "notes.txt").write_text("mine")
    run.give_up()
    assert contents(tmp_path) == {"run/notes.txt": b"mine"}


def test_estimated_depth_is_kept(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.begin_stage("depth", "d")
    run.frames_array("relative", SHAPE)[1] = np.ones(SHAPE[1:], np.float32)
    run.give_up()
    assert Run.open(run.path).manifest["status"] == "interrupted"
    again = create(run.path)
    assert again.begin_stage("depth", "d")
    assert 1 in again.frames_array("relative", SHAPE)


def test_a_finished_run_comes_back(tmp_path: Path) -> None:
    run = finish(create(tmp_path / "run", stride=1))
    before = json.loads((run.path / "run.json").read_text())
    create(tmp_path / "run", overwrite=True, stride=2).give_up()
    assert json.loads((run.path / "run.json").read_text()) == before
    assert Run.open(run.path).finished


def test_a_finished_run_that_comes_back_does_not_own_the_new_depth(tmp_path: Path) -> None:
    """Depth of another model has taken the cache over: under the old digest, nothing may be reused."""
    old = create(tmp_path / "run")
    old.begin_stage("depth", "old")
    old.end_stage("depth")
    finish(old)
    new = create(tmp_path / "run", overwrite=True)
    assert not new.begin_stage("depth", "new")
    new.frames_array("relative", SHAPE, fresh=True)[0] = np.ones(SHAPE[1:], np.float32)
    new.give_up()
    assert Run.open(tmp_path / "run").finished
    assert not create(tmp_path / "run", overwrite=True).begin_stage("depth", "old")


# -- stages and arrays ------------------------------------------------------------------------------------------------


def test_a_stage_counts_under_its_digest_only(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.begin_stage("poses", "a")
    assert not run.stage_done("poses", "a")
    run.end_stage("poses", kept={"n": 3})
    again = create(tmp_path / "run")
    assert again.stage_done("poses", "a")
    assert not again.stage_done("poses", "b")
    assert again.manifest["stages"]["poses"]["kept"] == {"n": 3}
    again.begin_stage("poses", "b")
    assert not again.stage_done("poses", "a")


def test_small_arrays_there_and_back(tmp_path: Path, rng: np.random.Generator) -> None:
    run = create(tmp_path / "run")
    arrays = {"T": rng.normal(size=(3, 4, 4)), "posed": np.array([True, False]), "none": np.zeros((0, 3))}
    run.save_arrays("cameras", arrays)
    found = run.load_arrays("cameras")
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_a_frame_is_there_when_it_was_written(tmp_path: Path, rng: np.random.Generator) -> None:
    array = FrameArray(tmp_path / "a", SHAPE, "a")
    assert [p in array for p in range(4)] == [False] * 4
    frame = rng.normal(size=SHAPE[1:]).astype(np.float32)
    array[2] = frame
    again = FrameArray(tmp_path / "a", SHAPE, "a")
    assert [p in again for p in range(4)] == [False, False, True, False]
    np.testing.assert_allclose(again[2], frame, rtol=2.0**-15)
    assert np.isnan(again[0]).all()


@pytest.mark.parametrize(("name", "rtol"), [("refined", 2.0**-15), ("refined_sigma", 2.0**-9)])
def test_frames_come_back_rounded_once(tmp_path: Path, rng: np.random.Generator, name: str, rtol: float) -> None:
    array = FrameArray(tmp_path / name, SHAPE, "w")
    frame = np.exp(rng.normal(0, 5, SHAPE[1:])).astype(np.float32)
    frame[0, :3] = np.nan, 0, -frame[0, 2]
    array[0] = frame
    np.testing.assert_allclose(array[0], frame, rtol=rtol)
    assert np.abs(array[0] / np.where(frame == 0, 1, frame) - 1)[1:].max() > rtol / 8  # it was rounded at all
    array[1] = array[0]
    np.testing.assert_array_equal(array[1], array[0])


def test_a_surface_takes_less_than_half_of_its_floats(tmp_path: Path, rng: np.random.Generator) -> None:
    y, x = np.mgrid[:240, :320]
    surface = 2 + np.sin(x / 40) * np.cos(y / 50) + rng.normal(0, 1e-3, x.shape)
    FrameArray(tmp_path / "aligned", (1, 240, 320), "w")[0] = surface.astype(np.float32)
    stored = sum(f.stat().st_size for f in (tmp_path / "aligned" / "c").rglob("*") if f.is_file())
    assert stored < 0.45 * 4 * x.size  # zstd alone, without rounding and bit planes: 0.9


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_a_frame_of_nothing_counts_as_written(tmp_path: Path, value: float) -> None:
    FrameArray(tmp_path / "a", SHAPE, "w")[1] = np.full(SHAPE[1:], value, np.float32)
    assert 1 in FrameArray(tmp_path / "a", SHAPE, "a")
    FrameArray(tmp_path / "a", SHAPE, "a")[3] = np.full(SHAPE[1:], value, np.float32)
    assert 3 in FrameArray(tmp_path / "a", SHAPE, "a")


def test_another_shape_or_a_fresh_start_forgets(tmp_path: Path) -> None:
    for shape, mode in ((SHAPE, "w"), ((5, 6, 8), "a"), ((4, 6, 9), "a")):
        FrameArray(tmp_path / "a", SHAPE, "w")[1] = np.ones(SHAPE[1:], np.float32)
        assert 1 not in FrameArray(tmp_path / "a", shape, mode)  # type: ignore[arg-type]


def test_a_half_written_frame_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up while a frame is written: one clear line, and the frame does not count."""
    array = FrameArray(tmp_path / "a", SHAPE, "w")
    array[0] = np.ones(SHAPE[1:], np.float32)
    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OutputError, match="disk is full"):
        array[1] = np.ones(SHAPE[1:], np.float32)
    monkeypatch.undo()
    again = FrameArray(tmp_path / "a", SHAPE, "a")
    assert (0 in again, 1 in again) == (True, False)


def test_frames_are_independent_chunks(tmp_path: Path) -> None:
    array = FrameArray(tmp_path / "a", SHAPE, "w")
    for p in range(4):
        array[p] = np.full(SHAPE[1:], p, np.float32)
    chunks = [f for f in (tmp_path / "a" / "c").rglob("*") if f.is_file()]
    assert len(chunks) == 4


# -- products ---------------------------------------------------------------------------------------------------------


def test_depth_comes_with_its_sigma_where_there_is_one(tmp_path: Path) -> None:
    """Runs of older versions have none, and are read as before."""
    run, truth = make_run(tmp_path / "run"), depth_map()
    assert truth.sigma is not None
    found = run.depth(2)
    np.testing.assert_array_equal(found.valid, truth.valid)
    np.testing.assert_allclose(found.sigma[found.valid], truth.sigma[truth.valid], rtol=0.01)  # type: ignore[index]
    shutil.rmtree(run.path / "sigma")
    older = run.depth(2)
    assert older.sigma is None
    np.testing.assert_array_equal(older.depth, found.depth)


def test_a_sigma_of_another_size_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    Image.fromarray(np.ones((4, 6), np.uint16)).save(run.path / "sigma" / "000002.png")
    with pytest.raises(InputError, match=r"sigma/000002\.png: not of the size of its depth map"):
        run.depth(2)
    assert run.depth(4).sigma is not None
    assert run.depth(2, sigma=False).sigma is None


def test_a_run_without_products_says_which_file_is_missing(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    assert run.frame_indices == []
    for product in (run.cloud, run.trajectory, run.encoding, run.camera, lambda: run.depth(0)):
        with pytest.raises(InputError) as caught:
            product()
        assert str(run.path) in str(caught.value)
