"""`python -m training.evaluate` as a user runs it: tables, report, pictures, interruption, damaged images, errors."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from marigold3d.depth.compact import load_network
from marigold3d.errors import OutputError, UsageError
from marigold3d.types import Domain, RelativeDepth
from tests.evaluation_sets import SIZES, pack, slope, write_frames, write_set
from training.evaluate import main
from training.evaluation import estimators
from training.evaluation.estimators import Averaged, Looks, averaged, open_estimator
from training.evaluation.journal import Journal
from training.evaluation.metrics import FIGURES
from training.evaluation.published import DATASETS, PUBLISHED

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def scannet(tmp_path: Path) -> list[str]:
    """Options that name a small data set of four images."""
    split = write_set("scannet", tmp_path / "set", 4)
    return ["--dataset", "scannet", "--root", str(tmp_path / "set"), "--split", str(split), "--quiet"]


def report_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


# -- end to end -------------------------------------------------------------------------------------------------------


def test_as_a_user_runs_it(tmp_path: Path) -> None:
    split = write_set("scannet", tmp_path / "set", 2)
    command = [sys.executable, "-m", "training.evaluate", "--dataset", "scannet", "--root", str(pack(tmp_path / "set"))]
    done = subprocess.run(
        [*command, "--split", str(split), "--model", "constant"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| Marigold v1-0, 50 steps, ensemble 10 | 6.4 | 95.1 | arXiv 2409.11355v2" in done.stdout
    assert "Judging constant" in done.stderr


def test_help_imports_no_network() -> None:
    code = "import sys, training.evaluate as e; e._parser(); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("kind", ["nyu", "kitti", "eth3d", "scannet", "diode"])
@pytest.mark.parametrize("model", ["constant", "ramp", "compact", "marigold"])
def test_every_data_set_with_every_kind_of_model(
    kind: str, model: str, tmp_path: Path, marigold_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = write_set(kind, tmp_path / "set", 2)
    name = str(marigold_checkpoint) if model == "marigold" else model
    size = ["--processing-resolution", "64"] if model == "marigold" else []
    root, out = (pack(tmp_path / "set"), tmp_path / "out.json")
    options = ["--dataset", kind, "--root", str(root), "--split", str(split), "--json", str(out), "--device", "cpu"]
    assert main([*options, "--model", name, *size, "--quiet"]) == 0
    report = report_of(out)
    assert report["images"] == 2
    for method in ("model", "constant", "ramp"):
        assert set(report["figures"][method]) == set(FIGURES)
        assert 0 <= report["figures"][method]["delta1"]["mean"] <= 1
    if model in ("constant", "ramp"):
        assert report["figures"]["model"] == report["figures"][model]
    assert report["figures"]["ramp"]["rmse"]["mean"] < report["figures"]["constant"]["rmse"]["mean"]
    assert report["seconds_an_image"] > 0
    assert report["peak_memory_mb"] > 10
    printed = capsys.readouterr().out
    assert all(row.method in printed for row in PUBLISHED if kind in row.figures)


def test_the_constants_figures_are_those_computed_by_hand(tmp_path: Path) -> None:
    split = write_set("nyu", tmp_path / "set", 3)
    out = tmp_path / "out.json"
    options = ["--dataset", "nyu", "--root", str(tmp_path / "set"), "--split", str(split), "--json", str(out)]
    assert main([*options, "--model", "constant", "--quiet"]) == 0
    errors = []
    for i in range(3):
        z = (np.round(slope("nyu", i) * 1000) / 1000)[45:471, 41:601]
        errors.append(np.mean(np.abs(z.mean() - z) / z))
    found = report_of(out)["figures"]["model"]["abs_rel"]
    assert found["mean"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert min(errors) - 1e-6 <= found["low"] <= found["mean"] <= found["high"] <= max(errors) + 1e-6
    assert found["images"] == 3


def test_marigolds_size_is_the_protocols_unless_given(tmp_path: Path, marigold_checkpoint: Path) -> None:
    split = write_set("diode", tmp_path / "set", 1)
    seen = {}
    for name, size in (("own", []), ("given", ["--processing-resolution", "64"])):
        out = tmp_path / f"{name}.json"
        options = ["--dataset", "diode", "--root", str(tmp_path / "set"), "--split", str(split), "--json", str(out)]
        assert main([*options, "--model", str(marigold_checkpoint), "--device", "cpu", "--quiet", *size]) == 0
        seen[name] = report_of(out)["model"]["processing_resolution"]
    assert seen == {"own": "640", "given": "64"}


def test_steps_ensemble_and_seed_reach_the_checkpoint(
    scannet: list[str], tmp_path: Path, marigold_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(marigold_checkpoint), "--steps", "2", "--ensemble", "3", "--seed", "5", "--device", "cpu"]
    out = tmp_path / "out.json"
    assert main([*scannet, *options, "--processing-resolution", "64", "--json", str(out), "--limit", "1"]) == 0
    model = report_of(out)["model"]
    assert (model["steps"], model["ensemble"], model["seed"]) == ("2", "3", "5")
    assert "2 steps, ensemble 3" in capsys.readouterr().out


def test_the_papers_table_from_several_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for kind in ("scannet", "diode"):
        split = write_set(kind, tmp_path / kind, 2)
        paths.append(str(tmp_path / f"{kind}.json"))
        options = ["--dataset", kind, "--root", str(tmp_path / kind), "--split", str(split), "--json", paths[-1]]
        assert main([*options, "--model", "ramp", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["--table", *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| method | ScanNet AbsRel | ScanNet δ1 | DIODE AbsRel | DIODE δ1 | source |"
    assert "| GeoWizard | 6.1 | - | 29.7 | - | arXiv 2409.11355v2, table 5 |" in lines
    ours = next(line for line in lines if line.startswith("| **ramp** |"))
    assert ours.count("[") == 4


def test_published_rows_name_known_sets_and_their_source() -> None:
    for row in PUBLISHED:
        assert set(row.figures) <= set(DATASETS)
        assert row.source.startswith("arXiv")
        assert all(0 < rel < 100 and (d1 is None or 50 < d1 < 100) for rel, d1 in row.figures.values())


# -- real frames ------------------------------------------------------------------------------------------------------


def test_frames_print_a_row_a_set_and_a_row_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_frames(tmp_path / "frames")
    pictures = tmp_path / "pictures"
    options = ["--dataset", "frames", "--root", str(root), "--per-image", "--pictures", str(pictures), "--quiet"]
    assert main([*options, "--model", "compact", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for name, count in (("tum_frame", 1), ("fastdepth_nyu", 1), ("slambook", 2), ("kitchen", 8)):
        assert f"| {name} | {count} |" in printed
    assert "| **mean of sets** |" in printed
    assert "| kitchen/000002 |" in printed
    assert len(list(pictures.glob("*.png"))) == 12
    with Image.open(pictures / "slambook__1.png") as sheet:
        assert sheet.size == (4 * 32, 24 + 16)


def test_other_weights_can_be_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    root = write_frames(tmp_path / "frames")
    tensors = {name: tensor.clone() for name, tensor in load_network()[1].state_dict().items()}
    same, damaged = tmp_path / "same.safetensors", tmp_path / "damaged.safetensors"
    save_file(tensors, same)
    damaged.write_bytes(same.read_bytes()[:-100])
    options = ["--dataset", "frames", "--root", str(root), "--device", "cpu", "--quiet"]
    assert main(options) == 0
    packaged = [line for line in capsys.readouterr().out.splitlines() if "mean of sets" in line]
    assert main([*options, "--weights", str(same)]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "mean of sets" in line] == packaged
    changed = {name: tensor * 0.9 for name, tensor in tensors.items()}
    save_file(changed, same)
    assert main([*options, "--weights", str(same)]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "mean of sets" in line] != packaged
    assert main([*options, "--weights", str(damaged)]) == 4
    assert main([*options, "--weights", str(tmp_path / "none")]) == 3
    assert main([*options, "--weights", str(same), "--model", "ramp"]) == 2


# -- several looks ----------------------------------------------------------------------------------------------------


class Crooked:
    """Sees the picture's red channel, raised towards the right of what it is shown, in its own scale and shift."""

    name = "crooked"

    def __init__(self, domain: Domain, scale: float = 1.0, shift: float = 0.0) -> None:
        self.domain, self.scale, self.shift = domain, scale, shift

    def estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        lean = np.linspace(-1.0, 1.0, rgb.shape[2])
        return [
            RelativeDepth((self.scale * (f[..., 0] / 10.0 + lean) + self.shift).astype(np.float32), self.domain)
            for f in rgb
        ]

    def provenance(self) -> dict[str, str]:
        return {"name": self.name, "processing_resolution": "1"}


@pytest.fixture
def symmetric() -> NDArray[np.uint8]:
    """(1, 8, 10, 3): brighter towards the bottom."""
    return np.repeat(np.arange(0, 80, 10, dtype=np.uint8)[None, :, None, None], 10, 2).repeat(3, 3)


@pytest.mark.parametrize("domain", ["log_depth", "metric"])
def test_the_mirrored_look_cancels_what_leans_to_a_side(domain: Domain, symmetric: NDArray[np.uint8]) -> None:
    values = Averaged([Crooked(domain)], flip=True).estimate(symmetric)[0].values
    np.testing.assert_allclose(values, symmetric[0, ..., 0] / 10.0, atol=1e-5)


@pytest.mark.parametrize(("domain", "scale"), [("depth", 5.0), ("disparity", 0.2), ("log_depth", 1.0)])
def test_looks_are_brought_to_the_first_before_the_mean(
    domain: Domain, scale: float, symmetric: NDArray[np.uint8]
) -> None:
    one = Crooked(domain).estimate(symmetric)[0].values
    both = Averaged([Crooked(domain), Crooked(domain, scale, 7.0)], flip=False).estimate(symmetric)[0].values
    np.testing.assert_allclose(both, one, atol=1e-5)


def test_metric_looks_are_averaged_as_they_are() -> None:
    low, high = np.full((2, 3), 1.0, np.float32), np.full((2, 3), 2.0, np.float32)
    np.testing.assert_array_equal(averaged([low, high], "metric"), np.full((2, 3), 1.5))


def test_looks_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_frames(tmp_path / "frames")
    options = ["--dataset", "frames", "--root", str(root), "--device", "cpu", "--quiet", "--limit", "2"]
    assert main([*options, "--flip", "--sizes", "64", "96"]) == 0
    assert "compact, flip, at 64, 96 px on" in capsys.readouterr().out
    assert main([*options, "--sizes", "64", "--processing-resolution", "96"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_baselines_take_no_settings() -> None:
    from marigold3d.config import DepthConfig

    with pytest.raises(UsageError, match="looks at no picture"):
        open_estimator(DepthConfig(model="ramp"), None, Looks(sizes=(64,)))


# -- interruption -----------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[int]]:
    """`counted(n)`: from now on every estimate of `constant` as the model is listed; Ctrl-C instead of the n-th."""

    def count(interrupt_at: int | None) -> list[int]:
        calls: list[int] = []

        class Counted(estimators.Constant):
            def estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
                calls.append(len(rgb))
                if len(calls) == interrupt_at:
                    raise KeyboardInterrupt
                return super().estimate(rgb)

        monkeypatch.setitem(estimators.BASELINES, "constant", Counted)
        return calls

    return count


def test_an_interrupted_evaluation_goes_on_where_it_was(
    scannet: list[str], tmp_path: Path, counted: Callable[[int | None], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    options = [*scannet, "--model", "constant"]
    assert main([*options, "--json", str(whole)]) == 0
    counted(3)
    assert main([*options, "--json", str(parts)]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not parts.exists()
    with (tmp_path / "parts.images.jsonl").open("ab") as file:
        file.write(b'{"name": "cut off in the mid')
    calls = counted(None)
    assert main([*options, "--json", str(parts)]) == 0
    assert len(calls) == 2
    assert report_of(parts)["figures"] == report_of(whole)["figures"]
    assert main([*options, "--json", str(parts)]) == 0
    assert len(calls) == 2


def test_work_keeps_the_figures_elsewhere_and_missing_pictures_are_made_up_for(
    scannet: list[str], tmp_path: Path, counted: Callable[[int | None], list[int]]
) -> None:
    calls = counted(None)
    options = [*scannet, "--model", "constant", "--work", str(tmp_path / "work")]
    assert main(options) == 0
    assert (tmp_path / "work/images.jsonl").is_file()
    assert main([*options, "--pictures", str(tmp_path / "pictures")]) == 0
    assert len(calls) == 8
    assert main([*options, "--pictures", str(tmp_path / "pictures")]) == 0
    assert len(calls) == 8
    assert len(list((tmp_path / "pictures").iterdir())) == 4


def test_figures_of_other_settings_are_not_mixed(
    scannet: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--json", str(tmp_path / "out.json")]
    assert main([*scannet, *out, "--model", "ramp"]) == 0
    assert main([*scannet, *out, "--model", "constant"]) == OutputError.exit_code
    assert "holds figures of other settings (model: " in capsys.readouterr().err
    assert main([*scannet, *out, "--model", "ramp", "--limit", "2"]) == OutputError.exit_code


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    for text in ("my notes\n", '{"a": 1}\n'):
        path.write_text(text)
        with pytest.raises(OutputError, match="is no journal"):
            Journal(path, {})
        assert path.read_text() == text


def test_undefined_figures_survive_the_journal(tmp_path: Path) -> None:
    Journal(tmp_path / "j.jsonl", {}).add({"name": "a", "model": {"edge_f1": float("nan"), "abs_rel": 0.25}})
    kept = Journal(tmp_path / "j.jsonl", {}).rows["a"]["model"]
    assert np.isnan(kept["edge_f1"])
    assert kept["abs_rel"] == 0.25


# -- damaged and missing ----------------------------------------------------------------------------------------------


def many(tmp_path: Path, damaged: int) -> list[str]:
    """Options that name 100 images, the first few cut short."""
    split = write_set("scannet", tmp_path / "set", 100, lambda kind, i: slope(kind, i % 4))
    for row in split.read_text().splitlines()[:damaged]:
        path = tmp_path / "set" / row.split()[1]
        path.write_bytes(path.read_bytes()[:-40])
    return [
        "--dataset",
        "scannet",
        "--root",
        str(tmp_path / "set"),
        "--split",
        str(split),
        "--model",
        "ramp",
        "--quiet",
    ]


def test_one_damaged_image_of_a_hundred_is_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*many(tmp_path, 1), "--json", str(tmp_path / "out.json")]
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "99 images (the published rows: 800)" in printed
    assert "1 images skipped:\n- scene0000_00/color/000000.jpg: scene0000_00/depth/000000.png: " in printed
    assert len(report_of(tmp_path / "out.json")["skipped"]) == 1
    write_set("scannet", tmp_path / "set", 100, lambda kind, i: slope(kind, i % 4))  # mended: it is judged now
    assert main(options) == 0
    assert report_of(tmp_path / "out.json")["images"] == 100


def test_more_than_one_damaged_image_of_a_hundred_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(many(tmp_path, 2)) == 3
    assert "2 of 100 images cannot be judged, more than 1%; the last: scene0000_00" in capsys.readouterr().err


def test_an_image_without_truth_cannot_be_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = write_set("scannet", tmp_path / "set", 1, lambda *_: np.zeros(SIZES["scannet"]))
    options = ["--dataset", "scannet", "--root", str(tmp_path / "set"), "--split", str(split), "--model", "ramp"]
    assert main(options) == 3
    assert "no pixel has a depth that counts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--root", "x"], 2, "give --dataset and --root"),
        (["--dataset", "nyu", "--root", "nowhere"], 3, "neither a folder nor a tar"),
        (["--dataset", "frames", "--root", "."], 3, "holds none of the folders"),
        (["--dataset", "frames", "--root", ".", "--split", "a"], 2, "has no list"),
        (["--dataset", "frames", "--root", ".", "--limit", "0"], 2, "--limit must be at least 1"),
        (["--table", "nowhere.json"], 3, "is no report"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(options) == code
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_an_unknown_model_and_missing_files_are_one_line(
    scannet: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*scannet, "--model", "nonesuch"]) == 4
    assert "unknown model 'nonesuch'" in capsys.readouterr().err
    assert main([*scannet, "--steps", "2"]) == 2
    assert "--steps: for Marigold checkpoints only" in capsys.readouterr().err
    root = Path(scannet[3])
    (root / "scene0000_00/depth/000001.png").unlink()
    assert main(scannet) == 3
    assert "lacks 1 of 8 files: scene0000_00/depth/000001.png;" in capsys.readouterr().err


def test_limit_takes_images_from_the_whole_list(scannet: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert main([*scannet, "--model", "ramp", "--limit", "2", "--json", str(out)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.images.jsonl").read_text().splitlines()[1:]]
    assert [row["name"][-7:] for row in rows] == ["000.jpg", "003.jpg"]
