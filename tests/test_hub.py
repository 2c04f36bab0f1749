"""Fetching models, from a hub on this computer: what is fetched, what is said before, what goes wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants

from marigold3d.config import DepthConfig
from marigold3d.depth import hub, load_estimator
from marigold3d.depth.hub import excludes_commercial_use, fetch, size_text, wanted_files
from marigold3d.errors import ModelError
from tests.depth_networks import write_network
from tests.fake_hub import FakeHub

pytestmark = pytest.mark.usefixtures("one_thread")

NET = "somebody/net"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with more in it than is needed."""
    folder = write_network(tmp_path_factory.mktemp("net"), "depth_anything")
    for extra in ("pytorch_model.bin", "model.fp16.safetensors", "net.onnx", "README.md", "picture.png"):
        (folder / extra).write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def fake(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with NET, and an empty cache."""
    with FakeHub({NET: network}, {NET: "cc-by-nc-4.0"}).running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server


def said(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("marigold3d: ")]


def test_only_what_is_needed_is_fetched_and_said_once(fake: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    estimator = load_estimator(DepthConfig(model=NET, device="cpu"))
    assert estimator.estimate(np.zeros((1, 48, 64, 3), np.uint8))[0].domain == "disparity"
    assert sorted(file for file, _ in fake.requested) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert said(capfd) == [
        f"marigold3d: downloading {NET}, 0.2 MB; licence cc-by-nc-4.0, which excludes commercial use"
    ]
    fake.requested.clear()
    load_estimator(DepthConfig(model=NET, device="cpu"))
    load_estimator(DepthConfig(model=NET, device="cpu", offline=True))
    assert (fake.requested, said(capfd)) == ([], [])


def test_an_interrupted_download_is_completed(fake: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    here = fetch(NET)
    (here / "model.safetensors").unlink()  # as after Ctrl-C: some files are there, the largest is not
    fake.requested.clear()
    assert fetch(NET) == here
    assert (here / "model.safetensors").stat().st_size > 1e5
    assert len(said(capfd)) == 2


def test_a_connection_that_breaks_off_is_taken_up_again(fake: FakeHub) -> None:
    fake.broken = {"model.safetensors": 30_000}
    assert (fetch(NET) / "model.safetensors").stat().st_size > 1e5


def test_a_cached_model_serves_without_connection(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    here = fetch(NET)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert fetch(NET) == here
    with pytest.raises(ModelError, match=r"cannot get the weights of somebody/other \(\w+\).*--model FOLDER"):
        fetch("somebody/other")
    assert len(said(capfd)) == 1


def test_refusals_of_the_hub(fake: FakeHub) -> None:
    with pytest.raises(ModelError, match="the hub has no model somebody/nothing, or it is private"):
        fetch("somebody/nothing")
    fake.gated = {NET}
    with pytest.raises(ModelError, match=r"accept its terms: do so at .*/somebody/net, then run `hf auth login`"):
        fetch(NET)


def test_pickles_are_not_even_fetched(fake: FakeHub, network: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(network, tmp_path / "old"))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    fake.repositories["somebody/old"] = folder
    with pytest.raises(ModelError, match=r"somebody/old offers only pickles \(pytorch_model.bin, …\)"):
        fetch("somebody/old")
    assert fake.requested == []


def test_a_disk_too_small(fake: FakeHub) -> None:
    fake.claimed["model.safetensors"] = 10**18
    with pytest.raises(ModelError, match=r"takes 1000000000.0 GB, but .*cache has .* left: free space, or set HF_HOME"):
        fetch(NET)
    assert fake.requested == []


def test_a_disk_that_fills_up(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(ModelError, match=r"the disk is full: free space in .*; the same command resumes"):
        fetch(NET)


def test_the_licence_of_a_named_model_is_known_where_the_hub_states_none(
    fake: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    fake.licences.clear()
    fetch(NET, licence="apple-amlr")
    assert said(capfd) == [f"marigold3d: downloading {NET}, 0.2 MB; licence apple-amlr, which excludes commercial use"]


PIPELINE = {
    "model_index.json": 1,
    "README.md": 2,
    "marigold.safetensors": 9000,
    "marigold.ckpt": 9000,
    "scheduler/scheduler_config.json": 1,
    "tokenizer/vocab.json": 1,
    "tokenizer/merges.txt": 1,
    "unet/config.json": 1,
    "unet/diffusion_pytorch_model.safetensors": 100,
    "unet/diffusion_pytorch_model.fp16.safetensors": 50,
    "unet/diffusion_pytorch_model.non_ema.safetensors": 100,
    "unet/diffusion_pytorch_model.bin": 100,
    "vae/config.json": 1,
    "vae/diffusion_pytorch_model.fp16.safetensors": 30,
    "onnx/unet/config.json": 1,
    "onnx/unet/model.safetensors": 100,
}


def test_one_precision_of_a_pipelines_parts_is_wanted() -> None:
    assert sorted(wanted_files("a/b", PIPELINE)) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]


def test_shards_and_their_index_are_wanted() -> None:
    files = {"config.json": 1, "model.safetensors.index.json": 1, "model-00001-of-00002.safetensors": 5}
    files |= {"model-00002-of-00002.safetensors": 5, "config.yaml": 1}
    assert set(wanted_files("a/b", files)) == set(files) - {"config.yaml"}


@pytest.mark.parametrize(
    "licence", ["cc-by-nc-4.0", "CC-BY-NC-SA-4.0", "apple-amlr", "non-commercial", "research-only"]
)
def test_licences_that_exclude_commerce(licence: str) -> None:
    assert excludes_commercial_use(licence)


@pytest.mark.parametrize("licence", ["apache-2.0", "mit", "OpenRAIL++-M", "cc-by-4.0", "bigscience-openrail-m", "ncsa"])
def test_licences_that_do_not(licence: str) -> None:
    assert not excludes_commercial_use(licence)


def test_sizes() -> None:
    assert [size_text(size) for size in (10, 99e6, 1.34e9)] == ["0.1 MB", "99.0 MB", "1.3 GB"]


def test_a_full_disk_is_noticed_before_anything_is_said(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ModelError, match=r"takes 0\.2 MB, but .* has 0\.1 MB left"):
        fetch(NET)
    assert said(capfd) == []
