"""`marigold3d models`: the list, one of it, a checkpoint in a folder; never a connection."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from marigold3d.cli import main
from marigold3d.config import DepthConfig
from marigold3d.depth import MODELS, load_estimator
from tests.depth_networks import write_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("net"), "depth_anything")


class Shell:
    """Runs `marigold3d` and keeps what it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["marigold3d", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), *self.capsys.readouterr()


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


def into_cache(cache: Path, repo: str, folder: Path) -> Path:
    """As if `folder` had been downloaded."""
    kept = cache / f"models--{repo.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0123abc")
    return Path(shutil.copytree(folder, kept / "snapshots" / "0123abc"))


def test_the_list(shell: Shell) -> None:
    code, out, _ = shell("models")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(MODELS)
    large = next(line for line in lines if line.startswith("depth-anything-v2-large"))
    assert "disparity" in large
    assert "1340 MB  not here " in large
    assert large.endswith("; no commercial use")
    assert next(line for line in lines if line.startswith("compact")).split()[4] == "here"
    assert max(map(len, lines)) <= 140


def test_what_was_downloaded_and_what_in_part(shell: Shell, empty_cache: Path, network: Path) -> None:
    into_cache(empty_cache, str(MODELS["depth-anything-v2-small"].repo), network)
    half = into_cache(empty_cache, str(MODELS["dpt-large"].repo), network)
    (half / "model.safetensors").unlink()
    code, out, _ = shell("models", "--json")
    found = json.loads(out)
    assert code == 0
    assert {name: entry["cached"] for name, entry in found.items() if entry["cached"] != "no"} == {
        "compact": "yes",
        "depth-anything-v2-small": "yes",
        "dpt-large": "in part",
    }
    assert found["depth-pro"]["commercial_use"] is False
    described = json.loads(shell("models", "depth-anything-v2-small", "--json")[1])
    assert described["class"] == "DepthAnythingForDepthEstimation"
    assert described["licence"] == "Apache-2.0"
    assert "class" not in json.loads(shell("models", "dpt-large", "--json")[1])


def test_a_folder_is_described_as_it_runs(shell: Shell, network: Path, marigold_checkpoint: Path) -> None:
    for folder, family in ((network, "transformers"), (marigold_checkpoint, "marigold")):
        code, out, _ = shell("models", folder, "--json")
        found, run = json.loads(out), load_estimator(DepthConfig(model=str(folder), device="cpu"))
        assert (code, found["family"], found["domain"]) == (0, family, run.domain)
        assert found["weights_sha256"] == run.provenance()["weights_sha256"]
    assert (found["class"], found["steps"], found["processing_resolution"]) == ("MarigoldDepthPipeline", 1, 64)
    assert found["shift_invariant"] is True
    text = shell("models", marigold_checkpoint)[1]
    assert "steps                  1\n" in text
    assert "shift_invariant        yes\n" in text


def test_a_damaged_folder(shell: Shell, network: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(network, tmp_path / "damaged"))
    (folder / "model.safetensors").write_bytes(b"short")
    code, out, err = shell("models", folder)
    assert (code, out, len(err.splitlines())) == (4, "", 1)
    assert "is cut off or damaged" in err


@pytest.mark.parametrize(
    ("model", "message"), [("nosuch", "unknown model 'nosuch'"), ("some/body", "hf download some/body")]
)
def test_nothing_to_describe(shell: Shell, model: str, message: str) -> None:
    code, _, err = shell("models", model)
    assert code == 4
    assert message in err
    assert len(err.splitlines()) == 1
