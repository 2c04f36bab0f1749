"""Whole runs of the recipe on tiny networks: they learn, resume exactly, share out work, leave pipelines that open."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from marigold3d.depth.marigold import MarigoldEstimator
from marigold3d.errors import InputError, OutputError, UsageError
from marigold3d.progress import run
from tests.recipe_files import settings, write_config, write_latents, write_pool, write_stable_diffusion
from training.marigold import main
from training.recipe import checkpoint, objectives
from training.recipe.checkpoint import WEIGHTS, all_checkpoints
from training.recipe.config import Recipe, parse_recipe
from training.recipe.data import CachedBatches, LatentPool
from training.recipe.errors import DivergedError
from training.recipe.loop import Training, train
from training.recipe.monitor import read_rows
from training.recipe.validation import sample_depth

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def recipe(base: Path, latents: Path, tmp_path: Path) -> dict[str, Any]:
    return settings(base, tmp_path / "run", latents)


@pytest.fixture(scope="module")
def finished(base: Path, latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run(train(parse_recipe(settings(base, out, latents))))
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / WEIGHTS)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def only(out: Path) -> list[str]:
    return [folder.name for folder in all_checkpoints(out)]


def command(arguments: list[str], processes: int = 1) -> subprocess.Popen[str]:
    """The command as a user runs it, in processes of its own, started by torchrun if they are many."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    line = [sys.executable, *(launcher if processes > 1 else []), "-m", "training.marigold", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True)


# ------------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("objective", ["diffusion", "end_to_end", "lcm"])
def test_one_batch_seen_again_and_again_is_learnt(recipe: dict[str, Any], objective: str) -> None:
    changes: dict[str, Any] = {"objective": objective, "rate": {"peak": 3e-3, "warmup_steps": 5}}
    changes["ema_decay"] = 0.5 if objective == "lcm" else 0.0
    training = Training(parse_recipe({**recipe, **changes}))
    batch = next(training.batches.stream([0]))
    count, factor = {"diffusion": (50, 0.5), "end_to_end": (20, 0.98), "lcm": (30, 0.8)}[objective]
    losses = [training.advance(iter([batch] * 2))["loss"] for _ in range(count)]
    assert np.mean(losses[-3:]) < factor * np.mean(losses[:3])


def test_accumulating_small_micro_batches_is_one_large_batch(recipe: dict[str, Any]) -> None:
    found = []
    for size in (1, 4):
        training = Training(parse_recipe({**recipe, "micro_batch": size}))
        training.batches.pool.tensors["mask"][:] = True  # type: ignore[attr-defined]  # a mean of means is the mean
        values = training.advance(training.micro_batches())
        found.append((values["loss"], values["gradient_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_autoencoder_and_the_prompt_never_change_and_the_u_net_does(finished: Path, base: Path) -> None:
    newest = all_checkpoints(finished)[-1]
    for part in ("vae", "text_encoder"):
        for file in (base / part).iterdir():
            assert (newest / part / file.name).read_bytes() == file.read_bytes()
    assert not same(weights(newest), weights(all_checkpoints(finished)[0]))


def test_running_averages_are_what_checkpoints_hold(recipe: dict[str, Any]) -> None:
    content = {**recipe, "ema_decay": 0.9, "steps": 3, "checkpoint": {"every": 3}}
    training, mean = Training(parse_recipe(content)), None
    batches = training.micro_batches()
    before = {name: value.clone() for name, value in training.bare_unet.state_dict().items()}
    for step in (1, 2, 3):
        training.advance(batches)
        now, decay = training.bare_unet.state_dict(), min(0.9, (1 + step) / (10 + step))
        mean = {name: decay * (mean or before)[name] + (1 - decay) * now[name] for name in now}
    training.save()
    assert mean is not None
    saved = weights(Path(content["out"]) / "step-000003")
    for name, value in saved.items():
        torch.testing.assert_close(value, mean[name])
    own = load_file(Path(content["out"]) / "step-000003" / "training" / "unet.safetensors")
    assert torch.equal(own["conv_in.weight"], training.bare_unet.conv_in.weight)


# ------------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    recipe: dict[str, Any], tmp_path: Path, ema_decay: float
) -> None:
    whole = {**recipe, "out": str(tmp_path / "whole"), "ema_decay": ema_decay}
    run(train(parse_recipe(whole)))
    parts = {**whole, "out": str(tmp_path / "parts")}
    steps = train(parse_recipe(parts))
    for progress in steps:
        if progress.done == 3:  # past the checkpoint of step 2: its third step is lost, and done again
            steps.close()
    assert only(tmp_path / "parts") == ["step-000002"]
    run(train(parse_recipe(parts), resume=True))
    for name in (f"unet/{WEIGHTS}", *(["training/unet.safetensors"] if ema_decay else [])):
        one, other = (load_file(tmp_path / which / "step-000004" / name) for which in ("whole", "parts"))
        assert same(one, other)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(recipe: dict[str, Any], tmp_path: Path) -> None:
    path = write_config(tmp_path / "recipe.yaml", {**recipe, "steps": 5000})
    process = command(["--config", str(path)])
    wait_for(Path(recipe["out"]) / "step-000002")
    process.kill()
    process.wait()
    end = checkpoint.step_of(all_checkpoints(Path(recipe["out"]))[-1]) + 2
    assert end < 5000
    assert main(["--config", str(path), "--resume", f"steps={end}"]) == 0
    assert main(["--config", str(path), f"steps={end}", f"out={tmp_path / 'whole'}"]) == 0
    killed, whole = (weights(Path(out) / f"step-{end:06d}") for out in (recipe["out"], tmp_path / "whole"))
    assert same(killed, whole)


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_130(recipe: dict[str, Any], tmp_path: Path) -> None:
    path = write_config(tmp_path / "recipe.yaml", {**recipe, "steps": 100_000, "checkpoint": {"every": 90_000}})
    process = command(["--config", str(path)])
    wait_for(Path(recipe["out"]) / "validation.csv")  # written before the first step
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert len(only(Path(recipe["out"]))) == 1


def wait_for(path: Path, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


def test_time_is_up_saves_and_stops(recipe: dict[str, Any]) -> None:
    newest = run(train(parse_recipe({**recipe, "steps": 1000, "minutes": 1e-6, "checkpoint": {"every": 900}})))
    assert newest.name == "step-000001"


def test_resuming_another_run_is_refused(finished: Path, base: Path, latents: Path) -> None:
    for change in ({"seed": 1}, {"micro_batch": 1}, {"noise": {"kind": "gaussian"}}, {"ema_decay": 0.5}):
        with pytest.raises(InputError, match=next(iter(change))):
            run(train(parse_recipe(settings(base, finished, latents, **change)), resume=True))


def test_a_folder_with_a_run_is_not_begun_again(finished: Path, base: Path, latents: Path) -> None:
    with pytest.raises(OutputError, match="--resume"):
        run(train(parse_recipe(settings(base, finished, latents))))


def test_resuming_nothing_and_damage_are_one_line(recipe: dict[str, Any], finished: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        run(train(parse_recipe(recipe), resume=True))
    shutil.copytree(finished, recipe["out"])
    state = Path(recipe["out"]) / "step-000004" / "training" / "state.pt"
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(InputError, match="step-000004 is damaged"):
        run(train(parse_recipe(recipe), resume=True))


# ------------------------------------------------------------------------------------------------------ many processes


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
def test_two_processes_train_as_one(recipe: dict[str, Any], finished: Path, tmp_path: Path, sharded: bool) -> None:
    """The same losses and weights, up to the order of sums; and one goes on where two stopped."""
    content = {**recipe, "sharded": sharded, "log_every": 1, "steps": 4}
    path = write_config(tmp_path / "recipe.yaml", content)
    process = command(["--config", str(path), "--quiet"], processes=2)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert stdout.strip().endswith("step-000004")
    alone = Training(parse_recipe({**recipe, "out": str(tmp_path / "alone")}))
    batches = alone.micro_batches()
    expected = [alone.advance(batches) for _ in range(4)]
    for name in ("loss", "gradient_norm"):
        found = scalars(Path(recipe["out"]) / "tensorboard", f"train/{name}")
        assert found == pytest.approx([values[name] for values in expected], rel=1e-3)
    for step in (2, 4):
        one, two = weights(finished / f"step-{step:06d}"), weights(Path(recipe["out"]) / f"step-{step:06d}")
        assert one.keys() == two.keys()
        for name in one:
            # Adam's first steps divide by the gradient's own size: where that is rounding noise, so is the step.
            assert ((one[name] - two[name]).abs() < 1e-4).float().mean() > 0.99, name
    more = parse_recipe({**content, "sharded": False, "steps": 6})
    newest = run(train(more, resume=True))
    assert newest.name == "step-000006"


def test_work_that_cannot_be_shared_out_is_refused(recipe: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="several processes"):
        Training(parse_recipe({**recipe, "sharded": True}))


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_opens_in_diffusers_and_predicts(finished: Path) -> None:
    from diffusers import MarigoldDepthPipeline

    pipeline = MarigoldDepthPipeline.from_pretrained(finished / "step-000004", use_safetensors=True)
    assert pipeline.default_denoising_steps == 2
    assert pipeline.default_processing_resolution == 64
    assert pipeline.scheduler.config.rescale_betas_zero_snr
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    pipeline.set_progress_bar_config(disable=True)
    depth = pipeline(np.full((48, 64, 3), 100, np.uint8)).prediction
    assert depth.shape == (1, 48, 64, 1)
    assert np.isfinite(depth).all()


def test_a_checkpoint_opens_in_marigold3d_as_it_stands(finished: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)).save(tmp_path / "a.png")
    line = [sys.executable, "-m", "marigold3d.cli", "depth", str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]
    done = subprocess.run([*line, "--model", str(finished / "step-000004")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_validation_samples_as_the_estimator_does(finished: Path) -> None:
    from training.recipe.networks import load_networks

    folder, rgb = finished / "step-000004", np.random.default_rng(2).integers(0, 255, (1, 48, 64, 3), np.uint8)
    estimator = MarigoldEstimator(folder, steps=3, processing_resolution=0, device="cpu", dtype="float32")
    networks = load_networks(folder)
    with torch.no_grad():
        picture = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
        zeros = sample_depth(networks.unet.eval(), networks, networks.scheduler, picture, 1, 0, from_zeros=True)
    estimator.noise, estimator.steps = "zeros", 1
    np.testing.assert_allclose(zeros[0, 0].numpy(), estimator.estimate(rgb)[0].values, atol=1e-4)


@pytest.mark.parametrize(("objective", "steps"), [("end_to_end", 1), ("lcm", 2)])
def test_variants_leave_pipelines_that_open(recipe: dict[str, Any], objective: str, steps: int) -> None:
    from diffusers import MarigoldDepthPipeline

    content = {**recipe, "objective": objective, "ema_decay": 0.9 if objective == "lcm" else 0.0, "steps": 2}
    newest = run(train(parse_recipe(content)))
    pipeline = MarigoldDepthPipeline.from_pretrained(newest, use_safetensors=True)
    assert pipeline.default_denoising_steps == steps
    assert type(pipeline.scheduler).__name__ == ("LCMScheduler" if objective == "lcm" else "DDIMScheduler")
    pipeline.set_progress_bar_config(disable=True)
    assert np.isfinite(pipeline(np.full((48, 64, 3), 100, np.uint8)).prediction).all()


def test_old_checkpoints_are_thinned_and_frozen_parts_written_once(recipe: dict[str, Any]) -> None:
    content = {**recipe, "steps": 7, "checkpoint": {"every": 1, "keep": 2, "keep_every": 3}}
    run(train(parse_recipe(content)))
    out = Path(recipe["out"])
    assert only(out) == ["step-000003", "step-000006", "step-000007"]
    assert [(folder / "training").is_dir() for folder in all_checkpoints(out)] == [False, True, True]
    vaes = [folder / "vae" / "diffusion_pytorch_model.safetensors" for folder in all_checkpoints(out)]
    assert len({vae.stat().st_ino for vae in vaes}) == 1
    assert not list(out.glob(".*partial"))


# ------------------------------------------------------------------------------------------------------------ bad input


class Poisoned(CachedBatches):
    """Latents that are no numbers from micro-batch 6 on: the fourth step."""

    def batch(self, k: int) -> Any:
        batch = super().batch(k)
        if k >= 6:
            batch.image[:] = torch.nan
        return batch


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    recipe: dict[str, Any],
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("training.recipe.data.CachedBatches", Poisoned)
    path = write_config(tmp_path / "recipe.yaml", recipe)
    assert main(["--config", str(path), "--quiet"]) == DivergedError.exit_code == 8
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "the loss is nan at step 4" in lines[0]
    assert "step-000002 is the last good checkpoint" in lines[0]
    assert same(weights(Path(recipe["out"]) / "step-000002"), weights(finished / "step-000002"))


def test_a_gradient_that_is_no_number_stops_too(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def root(error: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (error * 0.0).sum().sqrt()  # zero, with an infinite slope

    monkeypatch.setattr(objectives, "masked_mean", root)
    training = Training(parse_recipe(recipe))
    before = training.bare_unet.conv_in.weight.detach().clone()
    with pytest.raises(DivergedError, match="gradient's norm is nan"):
        training.advance(training.micro_batches())
    assert torch.equal(training.bare_unet.conv_in.weight, before)


@pytest.mark.parametrize("where", ["space", "write"])
def test_a_full_disk_is_one_line_and_the_last_good_checkpoint_stays(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    steps = train(parse_recipe(recipe))
    for progress in steps:
        if progress.done == 3:
            break
    if where == "write":
        monkeypatch.setattr(checkpoint, "save_file", full)
    else:
        usage = shutil.disk_usage(recipe["out"])
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match="step-000002 is kept") as caught:
        run(steps)
    assert "free some space" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert only(Path(recipe["out"])) == ["step-000002"]
    assert not list(Path(recipe["out"]).glob(".*partial"))


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("base=nowhere", 4, "base checkpoint nowhere does not exist"),
        ("seeed=1", 2, "did you mean 'seed'"),
        ("data.sources=[{kind: latents, root: nowhere}]", 3, "nowhere holds no latents"),
        ("data.sources=[{kind: latents}]", 2, "takes root alone"),
        ("data.sources=[{kind: hypersin, root: a}]", 2, "did you mean 'hypersim'"),
        ("precision=fp16", 2, "needs a GPU"),
        ("device=tpu", 2, "use auto, cpu or cuda"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, code: int, message: str
) -> None:
    path = write_config(tmp_path / "recipe.yaml", recipe)
    assert main(["--config", str(path), change]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]


# ----------------------------------------------------------------------------------------------------------------- data


def test_cached_samples_come_once_an_epoch_each_mirrored_or_not_and_whatever_the_batch(latents: Path) -> None:
    pool = LatentPool(latents)
    size, device = len(pool), torch.device("cpu")

    def rows(batch: int, flip: float) -> list[int]:
        batches = CachedBatches(pool, batch, 4, flip, device)
        images = torch.cat([batches.batch(k).image for k in range(2 * size // batch)])
        return [int((pool.tensors["image"].float() == image).all(dim=(1, 2, 3)).nonzero()) for image in images]

    assert rows(2, 0.5) == rows(6, 0.5)
    first, second = rows(1, 0.5)[:size], rows(1, 0.5)[size:]
    assert sorted(row // 2 for row in first) == sorted(row // 2 for row in second) == list(range(size))
    assert [row // 2 for row in first] != [row // 2 for row in second]
    assert {row % 2 for row in rows(1, 0.5)} == {0, 1}
    assert {row % 2 for row in rows(1, 1.0)} == {1}


def test_mirrored_pixels_belong_to_mirrored_latents(latents: Path) -> None:
    pool = LatentPool(latents, with_pixels=True)
    batches = CachedBatches(pool, 2, 0, 1.0, torch.device("cpu"))
    flipped, plain = batches.batch(0), CachedBatches(pool, 2, 0, 0.0, torch.device("cpu")).batch(0)
    assert flipped.depth_m is not None
    assert plain.depth_m is not None
    assert torch.equal(flipped.depth_m, plain.depth_m.flip(-1))


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_are_encoded_as_they_come_and_judged(base: Path, tmp_path: Path, workers: int) -> None:
    """From rendered pictures to checkpoint, TensorBoard and table, through the mixing of sources."""
    pool = str(write_pool(tmp_path / "pool", range(3)))
    sources = [
        {"kind": "pool", "root": pool, "first": n, "height": 24, "width": 32, "weight": w} for n, w in ((0, 9), (1, 1))
    ]
    held_out = {"kind": "pool", "root": pool, "first": 2, "height": 24, "width": 32}
    content = {
        **settings(base, tmp_path / "run", tmp_path),
        "data": {"sources": sources, "workers": workers},
        "validation": {"sources": [held_out], "samples": 3, "every": 2, "pictures": 2},
        "log_every": 1,
    }
    run(train(parse_recipe(content)))
    rows = read_rows(tmp_path / "run" / "validation.csv")
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert all(np.isfinite(row["abs_rel"]) and 0 <= row["delta1"] <= 1 for row in rows)
    tags = event_tags(tmp_path / "run" / "tensorboard")
    assert {"train/loss", "train/rate", "train/gradient_norm", "validation/abs_rel"} <= set(tags["scalars"])
    assert len(tags["images"]) == 2


def scalars(folder: Path, tag: str) -> list[float]:
    return [event.value for event in events(folder).Scalars(tag)]


def event_tags(folder: Path) -> dict[str, Any]:
    return dict(events(folder).Tags())


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_a_resumed_run_drops_the_rows_it_will_write_again(base: Path, latents: Path, tmp_path: Path) -> None:
    pool = str(write_pool(tmp_path / "pool", range(1)))
    held_out = {"kind": "pool", "root": pool, "height": 24, "width": 32}
    validation = {"sources": [held_out], "samples": 1, "every": 1}
    recipe = parse_recipe(settings(base, tmp_path / "run", latents, validation=validation))
    steps: Iterator[Any] = train(recipe)
    for progress in steps:
        if progress.done == 3:
            break
    assert [row["step"] for row in read_rows(tmp_path / "run" / "validation.csv")] == [0, 1, 2, 3]
    run(train(recipe, resume=True))
    assert [row["step"] for row in read_rows(tmp_path / "run" / "validation.csv")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("objective", ["diffusion", "end_to_end"])
def test_gradient_checkpointing_changes_memory_not_gradients(recipe: dict[str, Any], objective: str) -> None:
    found = []
    for checkpointing in (False, True):
        training = Training(parse_recipe({**recipe, "gradient_checkpointing": checkpointing, "objective": objective}))
        found.append(training.advance(training.micro_batches())["gradient_norm"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_bfloat16_learns_nearly_the_same_step(recipe: dict[str, Any]) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        training = Training(parse_recipe({**recipe, "precision": precision}))
        losses.append(training.advance(training.micro_batches())["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


def test_a_recipe_is_a_value(recipe: dict[str, Any]) -> None:
    assert isinstance(parse_recipe(recipe), Recipe)
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(recipe).steps = 3  # type: ignore[misc]
