"""The small Marigold: its scenes, its networks, and all its commands as a user runs them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from marigold3d.errors import InputError, UsageError
from marigold3d.progress import run
from tests.recipe_files import write_pool
from training.marigold import main as marigold
from training.recipe.latents import encode_pair
from training.recipe.networks import load_networks
from training.recipe.validation import affine_fit, metrics
from training.small import report
from training.small.__main__ import main as small
from training.small.autoencoder import VaeRecipe, train_vae, vae_loss
from training.small.encoding import encode_pool
from training.small.networks import autoencoder, random_unet, write_start
from training.small.scenes import PoolSource, shrunk

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = Path(__file__).parents[1] / "training" / "configs"


def test_views_are_averaged_their_depth_is_picked_and_the_sky_has_none() -> None:
    rgb = torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8).repeat(3, 1, 2)[None]  # (1, 3, 2, 4)
    depth = torch.tensor([[2.0, 2.0, 80.0, 80.0], [2.0, 2.0, 80.0, 80.0]])[None, None]
    small_rgb, depth_m, valid = shrunk(rgb, depth.log().half(), (1, 2))
    assert small_rgb.tolist() == [[[[25, 25]]] * 3]
    assert valid.tolist() == [[[[True, False]]]]
    assert depth_m.flatten().tolist() == pytest.approx([2.0, 0.0], rel=1e-3)


def test_a_pool_is_a_source_and_says_what_it_lacks(tmp_path: Path) -> None:
    root = str(write_pool(tmp_path, range(2, 4)))
    source = PoolSource(root, 2, 2, 24, 32)
    assert len(source) == 8
    assert source[5].rgb.shape == (3, 24, 32)
    assert source[5].name == "00003/001"
    assert torch.equal(source[5].depth_m, PoolSource(root, 3, 1, 24, 32)[1].depth_m)
    with pytest.raises(IndexError):
        source[8]
    with pytest.raises(InputError, match="lacks 2 of 4 shards"):
        PoolSource(root, 2, 4)
    with pytest.raises(UsageError, match="no whole fraction"):
        PoolSource(root, 2, 1, 25, 32)


def test_the_networks_are_of_a_few_million_parameters() -> None:
    count = sum(p.numel() for network in (autoencoder(), random_unet(0)) for p in network.parameters())
    assert 5e6 < count < 9e6


def test_latents_get_unit_deviation_and_the_loss_falls(tmp_path: Path) -> None:
    source = PoolSource(str(write_pool(tmp_path, range(2), views=8)), 0, 2, 24, 32)
    recipe = VaeRecipe(steps=30, batch=8, crop=24, warmup_steps=3)
    picture = torch.rand(4, 3, 24, 32) * 2 - 1
    torch.manual_seed(recipe.seed)
    before = float(vae_loss(autoencoder(), picture * 0 - 0.5, recipe))
    vae = run(train_vae(source, recipe))
    assert float(vae_loss(vae, picture * 0 - 0.5, recipe)) < 0.7 * before
    image, depth, _ = encode_pair(
        vae,
        *(
            torch.stack([getattr(source[i], n) for i in range(16)]).float() / d
            for n, d in (("rgb", 255), ("depth_m", 1))
        ),
        torch.stack([source[i].valid for i in range(16)]),
    )
    assert 0.5 < float(torch.cat([image, depth]).std()) < 2.0


def test_encoded_rows_are_the_samples_and_their_mirror_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = autoencoder(0.5).eval().requires_grad_(False)
    source = PoolSource(str(write_pool(tmp_path / "pool", range(1))), 0, 1, 24, 32)
    run(encode_pool(vae, source, tmp_path / "out", with_pixels=True))
    tensors = load_file(tmp_path / "out" / "latents00000.safetensors")
    rgb, depth_m, valid = next(source.shards())
    for row, flipped in ((2, False), (3, True)):
        parts = [part[1:2].flip(-1) if flipped else part[1:2] for part in (rgb.float() / 255, depth_m, valid)]
        image, depth, mask = encode_pair(vae, *parts)
        torch.testing.assert_close(tensors["image"][row].float(), image[0], atol=0.03, rtol=0.05)
        torch.testing.assert_close(tensors["depth"][row].float(), depth[0], atol=0.03, rtol=0.05)
        assert torch.equal(tensors["mask"][row], mask[0])
    assert torch.equal(tensors["depth_m"], depth_m)


def test_the_recipe_starts_from_the_folder(tmp_path: Path) -> None:
    write_start(tmp_path / "start", autoencoder(0.7), 0)
    networks = load_networks(tmp_path / "start")
    assert networks.unet.config.in_channels == 8
    assert networks.vae.config.scaling_factor == 0.7
    assert networks.prompt.shape == (1, 2, 32)


def test_affine_fit_and_metrics_by_hand() -> None:
    truth = torch.tensor([1.0, 2.0, 4.0, 9.0]).view(1, 1, 4)
    valid = torch.tensor([True, True, True, False]).view(1, 1, 4)
    fitted = affine_fit(-3.0 * truth + 7.0, truth, valid)  # a fit may turn the sign, as in the papers
    assert metrics(fitted, truth, valid) == pytest.approx((0.0, 1.0), abs=1e-6)
    flat = affine_fit(torch.zeros_like(truth), truth, valid)  # 7/3 everywhere
    abs_rel, delta1 = metrics(flat, truth, valid)
    assert abs_rel == pytest.approx((4 / 3 + 1 / 6 + 5 / 12) / 3)
    assert delta1 == pytest.approx(1 / 3)  # 7/6 < 1.25 < 12/7, 7/3


@pytest.mark.slow
def test_all_commands_from_scenes_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "ENSEMBLES", (1, 3))
    monkeypatch.setattr(report, "STEPS", (1, 2))
    pool = str(write_pool(tmp_path / "pool", range(1), views=8, size=(96, 128)))
    write_pool(tmp_path / "pool", range(99_999, 100_000), size=(96, 128))
    start, latents, out = tmp_path / "start", tmp_path / "latents", tmp_path / "run"
    assert small(["vae", "--pool", pool, "--shards", "1", "--steps", "2", "--batch", "4", "--out", str(start)]) == 0
    assert "round trip" in capsys.readouterr().out
    assert small(["vae", "--pool", pool, "--shards", "1", "--steps", "2", "--out", str(start)]) == 7
    line = ["encode", "--pool", pool, "--shards", "1", "--start", str(start), "--out", str(latents), "--pixels"]
    assert small(line) == 0
    sources = [
        f"data.sources=[{{kind: latents, root: {latents}}}]",
        f"validation.sources=[{{kind: pool, root: {pool}, first: 99999}}]",
        "validation.samples=2",
        "steps=2",
        "batch=2",
        "micro_batch=2",
    ]
    config = CONFIGS / "small_annealed.yaml"
    assert marigold(["--config", str(config), f"base={start}", f"out={out}", *sources]) == 0
    assert (
        marigold(
            [
                "--config",
                str(CONFIGS / "small_end_to_end.yaml"),
                f"base={out / 'step-000002'}",
                f"out={tmp_path / 'e2e'}",
                *sources,
            ]
        )
        == 0
    )
    assert (
        marigold(
            [
                "--config",
                str(CONFIGS / "small_lcm.yaml"),
                f"base={out / 'step-000002'}",
                f"out={tmp_path / 'lcm'}",
                *sources,
            ]
        )
        == 0
    )
    line = ["report", "--run", f"a={out}", "--pool", pool, "--scenes", "3", "--out", str(tmp_path / "report")]
    assert small(line) == 0
    for name in ("learning", "ensembles", "steps"):
        assert (tmp_path / "report" / f"{name}.png").stat().st_size > 5000
        with (tmp_path / "report" / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2
        assert all(np.isfinite(float(row["abs_rel"])) for row in rows)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "3 held-out views" in text
    assert "| a | 3 |" in text


@pytest.mark.parametrize(("argument", "code"), [("a", 2), ("a=nowhere", 3)])
def test_reports_of_nothing_say_so(
    tmp_path: Path, argument: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = str(write_pool(tmp_path / "pool", range(99_999, 100_000), size=(96, 128)))
    line = ["report", "--run", argument, "--pool", pool, "--out", str(tmp_path / "report")]
    assert small(line) == code
    assert capsys.readouterr().err.startswith("error: ")
