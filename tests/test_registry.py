"""Names to estimators: registered names, folders, hub names; and nothing heavy before one is asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marigold3d.config import DepthConfig
from marigold3d.depth import MODELS, load_estimator
from marigold3d.errors import ModelError, UsageError
from tests.depth_networks import write_network

pytestmark = pytest.mark.usefixtures("one_thread")


def test_importing_depth_loads_no_network_library() -> None:
    script = (
        "import sys, marigold3d.depth as d; d.MODELS; "
        "print([m for m in ('torch', 'diffusers', 'transformers', 'huggingface_hub', 'scipy') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_entry_says_where_from_and_under_which_licence() -> None:
    for name, entry in MODELS.items():
        assert entry.licence, name
        assert (entry.repo is None) == (entry.family == "compact"), name
        assert (entry.size_mb > 0) == (entry.repo is not None), name
    assert DepthConfig().model in MODELS


def test_a_folder_with_a_model_index_is_marigold(marigold_checkpoint: Path) -> None:
    config = DepthConfig(model=str(marigold_checkpoint), steps=2, ensemble=3, seed=5, processing_resolution=32)
    estimator: Any = load_estimator(replace(config, device="cpu"))
    assert (estimator.domain, estimator.steps, estimator.ensemble, estimator.seed) == ("depth", 2, 3, 5)
    depth = estimator.estimate(np.zeros((1, 24, 40, 3), np.uint8))[0]
    assert depth.values.shape == (24, 40)


def test_a_registered_checkpoint_brings_its_own_settings(
    marigold_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {name: replace(MODELS[name], repo=str(marigold_checkpoint)) for name in ("marigold", "marigold-e2e")}
    monkeypatch.setattr("marigold3d.depth.registry.MODELS", entries)
    plain: Any = load_estimator(DepthConfig(model="marigold", device="cpu"))
    assert (plain.noise, plain.name, plain.licence) == ("gaussian", "marigold", "OpenRAIL++-M")
    tuned: Any = load_estimator(DepthConfig(model="marigold-e2e", device="cpu"))
    assert (tuned.noise, tuned.steps) == ("zeros", 1)
    with pytest.raises(UsageError, match="--ensemble 1"):
        load_estimator(DepthConfig(model="marigold-e2e", device="cpu", ensemble=4))


def test_a_named_model_keeps_its_domain_and_a_folder_takes_yours(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="compact predicts log_depth: leave --domain metric out"):
        load_estimator(DepthConfig(domain="metric"))
    folder = write_network(tmp_path, "depth_anything")
    assert load_estimator(DepthConfig(model=str(folder), device="cpu", domain="metric")).domain == "metric"
    with pytest.raises(UsageError, match="unknown domain 'inverse'"):
        load_estimator(DepthConfig(model=str(folder), device="cpu", domain="inverse"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 2, "ensemble": 3}, "--steps, --ensemble: for Marigold checkpoints only"),
        ({"warm_start": True}, "--warm-start: for Marigold"),
        ({"tiny_vae": "some/where"}, "--tiny-vae: for Marigold"),
        ({"sigma_every": 5}, "--sigma-every: for Marigold"),
        ({"resample": "nearest"}, "--resample: for Marigold"),
    ],
)
@pytest.mark.parametrize("model", ["compact", "depth-anything-v2-large"])
def test_settings_without_effect_are_refused_before_a_download(
    model: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load_estimator(DepthConfig(model=model, device="cpu", **settings))


def test_compact_has_one_precision() -> None:
    with pytest.raises(UsageError, match="compact runs in float32"):
        load_estimator(DepthConfig(dtype="float16", device="cpu"))


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'marygold': use compact, marigold, .*OWNER/NAME"):
        load_estimator(DepthConfig(model="marygold"))


@pytest.mark.parametrize("name", ["marigold", "marigold-lcm", "depth-anything-v2-small", "somebody/some-depth-model"])
def test_missing_weights_offline_say_how_to_get_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # whatever this computer has fetched before
    with pytest.raises(ModelError, match=r"hf download .*--model FOLDER") as caught:
        load_estimator(DepthConfig(model=name, device="cpu", offline=True))
    assert "\n" not in str(caught.value)


def test_weights_fetched_before_are_used_offline(
    marigold_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    fetched = tmp_path / "models--somebody--marigold"  # the layout of the hub's cache
    shutil.copytree(marigold_checkpoint, fetched / "snapshots" / "0123abc")
    (fetched / "refs").mkdir()
    (fetched / "refs" / "main").write_text("0123abc")
    estimator = load_estimator(DepthConfig(model="somebody/marigold", device="cpu", offline=True))
    assert estimator.provenance()["source"] == "somebody/marigold"


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither model_index\.json"):
        load_estimator(DepthConfig(model=str(tmp_path)))
    with pytest.raises(ModelError, match="does not exist"):
        load_estimator(DepthConfig(model=str(tmp_path / "absent")))
