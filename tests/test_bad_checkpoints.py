"""Checkpoints that are none, incomplete, damaged or of another kind: one line that says so, exit code 4."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from marigold3d.config import DepthConfig
from marigold3d.depth import load_estimator
from marigold3d.errors import ModelError
from tests.depth_networks import write_network

pytestmark = pytest.mark.usefixtures("one_thread")

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def depth_anything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("depth-anything"), "depth_anything")


def edit_json(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def as_pickle(file: Path) -> None:
    """A file that must never be opened, in place of the weights."""
    file.with_name("pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    file.unlink()


def change_weights(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    weights = load_file(file)
    first = max(weights, key=lambda name: weights[name].size)
    save_file(weights | {first: change(weights[first])}, file, metadata={"format": "pt"})


def nan(values: np.ndarray) -> np.ndarray:
    return np.full_like(values, np.nan)


def narrower(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values[: len(values) // 2])


def drop_a_tensor(file: Path) -> None:
    weights = load_file(file)
    weights.pop(max(weights, key=lambda name: weights[name].size))
    save_file(weights, file, metadata={"format": "pt"})


def in_shards(file: Path) -> None:
    """Two shards, of which one got lost."""
    weights = load_file(file)
    stem = file.name.removesuffix(".safetensors")
    shards = [f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {name: shards[i % 2] for i, name in enumerate(weights)}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    kept = {name: tensor for name, tensor in weights.items() if index[name] == shards[0]}
    save_file(kept, file.with_name(shards[0]), metadata={"format": "pt"})
    file.unlink()


UNET = "unet/diffusion_pytorch_model.safetensors"

MARIGOLD: dict[str, tuple[Damage, str]] = {
    "empty": (lambda f: [shutil.rmtree(f), f.mkdir()], "neither model_index.json"),
    "cut off": (lambda f: cut(f / UNET), "unet/diffusion_pytorch_model.safetensors is cut off or damaged"),
    "no safetensors": (lambda f: (f / UNET).write_text("<html>"), "is cut off or damaged"),
    "pickle": (lambda f: as_pickle(f / UNET), "pytorch_model.bin, a pickle, which can run code"),
    "no weights": (lambda f: (f / UNET).unlink(), "holds no weights"),
    "lost shard": (lambda f: in_shards(f / UNET), "lacks diffusion_pytorch_model-00002-of-00002.safetensors"),
    "lost tensor": (lambda f: drop_a_tensor(f / UNET), "lacks weights"),
    "other shapes": (lambda f: change_weights(f / UNET, narrower), "cannot be loaded"),
    "no unet": (lambda f: shutil.rmtree(f / "unet"), "its folder unet/ is missing"),
    "no scheduler": (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "scheduler_config.json is missing"),
    "bad json": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json cannot be read"),
    "normals": (
        lambda f: edit_json(f / "model_index.json", _class_name="MarigoldNormalsPipeline", prediction_type=None),
        "predicts surface normals: use a Marigold depth checkpoint",
    ),
    "intrinsic images": (
        lambda f: edit_json(f / "model_index.json", _class_name="MarigoldIntrinsicsPipeline"),
        "predicts materials and lighting",
    ),
    "image generator": (
        lambda f: edit_json(f / "model_index.json", _class_name="StableDiffusionPipeline"),
        "use a Marigold depth checkpoint",
    ),
    "not a number": (lambda f: change_weights(f / UNET, nan), "weights are damaged"),
}

TRANSFORMERS: dict[str, tuple[Damage, str]] = {
    "cut off": (lambda f: cut(f / "model.safetensors"), "model.safetensors is cut off or damaged"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is cut off or damaged"),
    "pickle": (lambda f: as_pickle(f / "model.safetensors"), "pytorch_model.bin, a pickle, which can run code"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "lost shard": (lambda f: in_shards(f / "model.safetensors"), "lacks model-00002-of-00002.safetensors"),
    "lost tensor": (lambda f: drop_a_tensor(f / "model.safetensors"), "lacks weights"),
    "other shapes": (lambda f: change_weights(f / "model.safetensors", narrower), "cannot be loaded"),
    "bad json": (lambda f: (f / "config.json").write_text("[]"), "does not hold a JSON object"),
    "no preprocessor": (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json is missing"),
    "another task": (lambda f: edit_json(f / "config.json", model_type="vit"), "'vit', no depth network"),
    "not a number": (lambda f: change_weights(f / "model.safetensors", nan), "its weights are damaged"),
}


def fails(folder: Path, message: str) -> None:
    """Loading, or at the latest the first frame, says `message` in one line."""
    with pytest.raises(ModelError) as caught:
        load_estimator(DepthConfig(model=str(folder), device="cpu")).estimate(np.zeros((1, 48, 64, 3), np.uint8))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("case", MARIGOLD)
def test_marigold(case: str, marigold_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = MARIGOLD[case]
    folder = Path(shutil.copytree(marigold_checkpoint, tmp_path / "model"))
    damage(folder)
    capfd.readouterr()
    fails(folder, message)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_transformers(case: str, depth_anything: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = TRANSFORMERS[case]
    folder = Path(shutil.copytree(depth_anything, tmp_path / "model"))
    damage(folder)
    capfd.readouterr()
    fails(folder, message)
    assert "".join(capfd.readouterr()) == ""  # the line is the error's, and the only one


def test_a_file_is_no_folder(depth_anything: Path) -> None:
    fails(depth_anything / "model.safetensors", "is a file: give the folder")


def test_full_precision_is_taken_where_both_are_there(depth_anything: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(depth_anything, tmp_path / "both"))
    cut(Path(shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")))
    estimator = load_estimator(DepthConfig(model=str(folder), device="cpu"))
    whole = load_estimator(DepthConfig(model=str(depth_anything), device="cpu"))
    assert estimator.provenance()["weights_sha256"] == whole.provenance()["weights_sha256"]


@pytest.mark.parametrize(
    ("family", "case"), [("marigold", "cut off"), ("transformers", "pickle"), ("transformers", "another task")]
)
def test_the_command_line(
    family: str, case: str, marigold_checkpoint: Path, depth_anything: Path, tmp_path: Path
) -> None:
    source, table = (marigold_checkpoint, MARIGOLD) if family == "marigold" else (depth_anything, TRANSFORMERS)
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    table[case][0](folder)
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    arguments = ["depth", str(tmp_path / "photo.png"), "-o", str(tmp_path / "out"), "--model", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "marigold3d.cli", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 4, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("marigold3d: ")]
    assert len(said) == 1
    assert table[case][1] in said[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "pwned").exists()
