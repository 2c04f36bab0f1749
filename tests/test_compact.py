"""The embedded network: shapes, laws of its estimator, its weights file, its errors;
and that training it lowers the loss.
"""

import copy
import hashlib
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from marigold3d.depth.compact import CompactEstimator, Look, load_network, mean_of_looks, processing_size
from marigold3d.depth.compact_network import CompactNetwork, SameConv
from marigold3d.depth.upsampling import joint_bilateral
from marigold3d.errors import InputError, ModelError
from training import augment, compact, depthwise, losses, pool, prior


@pytest.fixture(scope="module")
def estimator() -> CompactEstimator:
    return CompactEstimator(device="cpu", processing_resolution=128)


@pytest.fixture(scope="module")
def view() -> tuple[np.ndarray, np.ndarray]:
    """One synthetic view: rgb (H, W, 3) uint8 and log depth (H, W)."""
    shard = pool.render_shard(seed=7, number=0, count=1)
    return shard["rgb"][0].permute(1, 2, 0).numpy(), shard["log_depth"][0, 0].float().numpy()


@pytest.mark.parametrize("size", [(96, 128), (97, 131), (33, 200)])
def test_output_has_the_input_size_and_is_finite(size: tuple[int, int]) -> None:
    with torch.inference_mode():
        log_depth, log_scale = CompactNetwork().eval()(torch.rand(2, 3, *size))
    assert log_depth.shape == log_scale.shape == (2, 1, *size)
    assert torch.isfinite(log_depth).all()
    assert torch.isfinite(log_scale).all()


def test_folding_a_normalisation_changes_nothing() -> None:
    convolution, norm = torch.nn.Conv2d(4, 6, 3, bias=False), torch.nn.BatchNorm2d(6, eps=prior.NORM_EPSILON).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        torch.nn.init.uniform_(tensor, 0.5, 1.5)
    source = {f"c.{k}": v for k, v in convolution.state_dict().items()} | {
        f"n.{k}": v for k, v in norm.state_dict().items()
    }
    weight, bias = prior.fold(source, "c", "n")
    x = torch.rand(1, 4, 9, 9)
    torch.testing.assert_close(torch.nn.functional.conv2d(x, weight, bias), norm(convolution(x)))


def test_frames_are_independent_of_their_batch(estimator: CompactEstimator) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (3, 60, 90, 3), dtype=np.uint8)
    together, alone = estimator.estimate(rgb), estimator.estimate(rgb[1:2])
    assert len(together) == 3
    assert together[0].values.shape == (60, 90)
    np.testing.assert_array_equal(together[1].values, alone[0].values)


def test_uncertainty_is_positive_and_the_output_deterministic(estimator: CompactEstimator, view: tuple) -> None:
    first, again = (estimator.estimate(view[0][None])[0] for _ in range(2))
    np.testing.assert_array_equal(first.values, again.values)
    assert first.uncertainty is not None
    assert (first.uncertainty > 0).all()


def test_a_mirrored_frame_gives_nearly_the_mirrored_depth(estimator: CompactEstimator, view: tuple) -> None:
    rgb = view[0]
    straight, mirrored = estimator.estimate(np.stack([rgb, rgb[:, ::-1]]))
    difference = straight.values - mirrored.values[:, ::-1]
    assert np.std(difference) < 0.5 * np.std(straight.values) + 0.05


def test_a_look_and_its_mirror_image_together_know_no_left_and_right(view: tuple) -> None:
    estimator = CompactEstimator(device="cpu")
    estimator.looks = (Look(128), Look(128, mirrored=True))
    straight, mirrored = estimator.estimate(np.stack([view[0], view[0][:, ::-1]]))
    np.testing.assert_allclose(straight.values, mirrored.values[:, ::-1], atol=1e-4)
    assert straight.uncertainty is not None
    assert mirrored.uncertainty is not None
    np.testing.assert_allclose(straight.uncertainty, mirrored.uncertainty[:, ::-1], atol=1e-4)


def test_looks_are_brought_to_one_shift_before_the_mean() -> None:
    shape = torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.full_like(shape, 0.3)
    log_depth, spread = mean_of_looks([torch.cat((shape + shift, sigma), 1) for shift in (0.0, 5.0)], shape.shape[-2:])
    torch.testing.assert_close(log_depth, (shape - shape.median())[0, 0])
    torch.testing.assert_close(spread, sigma[0, 0])


def test_weights_can_be_given(view: tuple) -> None:
    network = load_network()[1]
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)  # type: ignore[arg-type]
    content = save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    given = CompactEstimator(device="cpu", weights=content)
    assert given.provenance()["weights_sha256"] == hashlib.sha256(content).hexdigest()
    assert np.ptp(given.estimate(view[0][None])[0].values) < 1e-6


def test_nearby_exposures_give_nearly_the_same_depth(estimator: CompactEstimator, view: tuple) -> None:
    rgb = view[0]
    darker = (rgb * 0.9).astype(np.uint8)
    a, b = estimator.estimate(np.stack([rgb, darker]))
    assert np.corrcoef(a.values.ravel(), b.values.ravel())[0, 1] > 0.95


def test_it_knows_the_depth_of_synthetic_scenes_better_than_a_constant(estimator: CompactEstimator) -> None:
    shard = pool.render_shard(seed=11, number=0, count=4)
    gained = []
    for rgb, log_depth in zip(shard["rgb"], shard["log_depth"][:, 0].float().numpy(), strict=True):
        values = estimator.estimate(rgb.permute(1, 2, 0).numpy()[None])[0].values
        solid = log_depth < np.log(pool.FAR_M) - 0.01
        error = (values - log_depth)[solid]
        gained.append(
            np.abs(error - np.median(error)).mean() / np.abs(log_depth[solid] - np.median(log_depth[solid])).mean()
        )
    assert np.mean(gained) < 0.75


def test_provenance_names_weights_and_licence(estimator: CompactEstimator) -> None:
    said = estimator.provenance()
    assert len(said["weights_sha256"]) == 64
    assert said["licence"]


def test_weights_are_small_safetensors() -> None:
    content = resources.files("marigold3d.depth").joinpath("weights/compact.safetensors").read_bytes()
    assert len(content) <= 25e6
    assert load_network(content)[1].training is False


def test_damaged_weights_say_so() -> None:
    content = resources.files("marigold3d.depth").joinpath("weights/compact.safetensors").read_bytes()
    with pytest.raises(ModelError, match="damaged"):
        load_network(content[: len(content) // 2])


def test_wrong_frames_are_refused(estimator: CompactEstimator) -> None:
    with pytest.raises(InputError):
        estimator.estimate(np.zeros((60, 90, 3), np.uint8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (256, 320)), ((360, 540), (224, 320)), ((640, 360), (320, 192)), ((20, 2000), (32, 320))],
)
def test_processing_size_is_a_multiple_of_the_stride(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert processing_size(*size, 320) == expected


def test_upsampling_keeps_a_step_where_the_picture_has_it() -> None:
    rgb = torch.zeros(3, 64, 96)
    rgb[:, :, 50:] = 1.0  # not on a coarse pixel's border
    small_rgb = torch.nn.functional.interpolate(rgb[None], (16, 24), mode="area")[0]
    coarse = small_rgb[:1] * 3.0
    fine = joint_bilateral(coarse, small_rgb, rgb)[0]
    assert torch.allclose(fine[:, :48], torch.zeros(()), atol=0.05)
    assert torch.allclose(fine[:, 53:], torch.tensor(3.0), atol=0.05)


def test_upsampling_keeps_constants_and_ranges() -> None:
    rgb, small_rgb = torch.rand(3, 30, 41), torch.rand(3, 8, 11)
    coarse = torch.rand(1, 8, 11)
    fine = joint_bilateral(torch.cat((coarse, torch.full_like(coarse, 2.0))), small_rgb, rgb)
    torch.testing.assert_close(fine[1], torch.full_like(fine[1], 2.0))
    assert coarse.min() - 1e-5 <= fine[0].min()
    assert fine[0].max() <= coarse.max() + 1e-5


def test_the_loss_ignores_scale_and_is_zero_for_the_truth() -> None:
    log_depth = torch.rand(2, 1, 24, 32) * 2
    weight = losses.weights(log_depth)
    assert losses.residual(log_depth + 0.7, log_depth, weight).abs().max() < 1e-5
    assert losses.gradient_loss(losses.residual(log_depth + 0.7, log_depth, weight), weight) < 1e-4
    assert losses.gradient_loss(torch.rand(2, 1, 24, 32), weight) > 0.1


def test_rate_warms_up_then_falls() -> None:
    recipe = compact.Recipe(steps=1000, warm_up_steps=100)
    rates = [compact.learning_rate(recipe, step) for step in (0, 50, 100, 500, 1000)]
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4] > 0


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("size", [(12, 14), (13, 11)])
def test_the_frozen_depthwise_convolution_is_the_same(kernel: int, stride: int, size: tuple[int, int]) -> None:
    """Its value and its gradient; its weights have none."""
    torch.manual_seed(0)
    plain = SameConv(8, 8, kernel, stride, groups=8)
    frozen = copy.deepcopy(plain)
    depthwise.freeze(frozen)
    gradients, values = [], []
    for convolution in (plain, frozen):
        x = torch.linspace(-1, 1, 2 * 8 * size[0] * size[1]).sin().reshape(2, 8, *size).requires_grad_()
        y = convolution(x)
        (y * torch.arange(y.numel()).reshape(y.shape).cos()).sum().backward()
        gradients.append(x.grad)
        values.append(y.detach())
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert plain.weight.grad is not None
    assert frozen.weight.grad is None
    assert frozen.state_dict().keys() == plain.state_dict().keys()


def test_the_prior_s_first_layers_and_spatial_filters_stay() -> None:
    training = compact.Training(compact.Recipe())
    learns = {name for name, p in training.network.encoder.named_parameters() if p.requires_grad}
    assert not any("depthwise" in name or name.startswith(("stem", "blocks.0.", "blocks.4.")) for name in learns)
    assert any(name.startswith("blocks.15.project") for name in learns)


@pytest.mark.parametrize("seed", range(3))
def test_photographs_stay_pictures_and_follow_from_their_seed(seed: int) -> None:
    rgb = torch.rand(6, 3, 48, 64, generator=torch.Generator().manual_seed(9))
    first, second = (augment.photograph(rgb, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.isfinite().all()
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert (first - rgb).abs().mean() > 0.02


def test_turning_the_hue_keeps_grey() -> None:
    grey = torch.full((4, 3, 2, 2), 0.4)
    turned = augment.turn_hue(grey, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned, grey)


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    shard = pool.render_shard(0, 0, count=1)
    shard["log_depth"][:] = torch.nan
    save_file(shard, pool.shard_path(tmp_path, 0))
    recipe = compact.Recipe(batch=2, sizes=((96, 64),), first_shards=1, shards=1)
    with pytest.raises(FloatingPointError, match="step 0"):
        compact.Training(recipe).advance(compact.Shards(tmp_path))


@pytest.mark.parametrize("domain", ["depth", "disparity"])
def test_affine_changes_of_a_prediction_do_not_matter_in_affine_invariant_domains(domain: losses.DepthDomain) -> None:
    log_depth = torch.randn(3, 1, 12, 16, generator=torch.Generator().manual_seed(1))
    weight = losses.weights(log_depth)
    exact = log_depth.exp() if domain == "depth" else (-log_depth).exp()
    assert float(losses.residual(3.0 * exact - 2.0, log_depth, weight, domain).abs().max()) < 1e-4
    other = exact + torch.rand(exact.shape, generator=torch.Generator().manual_seed(2))
    first, second = (losses.residual(x, log_depth, weight, domain) for x in (other, 0.2 * other + 7.0))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    assert float(first.abs().mean()) > 0.1


def test_a_shuffled_prior_keeps_its_values_and_not_its_order() -> None:
    known, shuffled = (compact.Training(compact.Recipe(has_prior=p)).network.encoder for p in (True, False))
    weight, other = (e.blocks[3].project.weight.detach().flatten() for e in (known, shuffled))
    torch.testing.assert_close(weight.sort().values, other.sort().values)
    assert float(torch.corrcoef(torch.stack((weight, other)))[0, 1]) < 0.2
    assert all(p.requires_grad for p in shuffled.parameters())


def test_the_second_pool_gives_its_share(tmp_path: Path) -> None:
    for name, value in (("first", 0), ("second", 255)):
        (tmp_path / name).mkdir()
        pictures = torch.full((4, 3, 8, 8), value, dtype=torch.uint8)
        shard = {"rgb": pictures, "log_depth": torch.zeros(4, 1, 8, 8).half()}
        save_file(shard, pool.shard_path(tmp_path / name, 0))
    shards = compact.Shards(tmp_path / "first", tmp_path / "second", 0.25)
    shards.up_to(1)
    rgb, _ = shards.batch(2000, torch.Generator().manual_seed(0))
    assert float(rgb[:, 0, 0, 0].mean()) == pytest.approx(0.25, abs=0.04)


@pytest.mark.slow
def test_the_command_trains_on_a_pool(tmp_path: Path) -> None:
    for number in (0, compact.HELD_OUT_SHARD):
        save_file(pool.render_shard(0, number, count=1), pool.shard_path(tmp_path, number))
    command = [
        sys.executable,
        "-m",
        "training.compact",
        "--out",
        str(tmp_path),
        "--pool",
        str(tmp_path),
        "--steps",
        "3",
        "--batch",
        "2",
    ]
    options = ["--sizes", "96x64", "--first-shards", "1", "--shards", "1", "--threads", "1"]
    said = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    step, loss, held_out, _ = said.stdout.strip().splitlines()[-1].split(",")
    assert int(step) == 3
    assert float(loss) > 0
    assert 0 < float(held_out) < 2
    load_network((tmp_path / "compact.safetensors").read_bytes())


@pytest.mark.slow
def test_training_lowers_the_error_and_resumes_exactly(tmp_path: Path) -> None:
    recipe = compact.Recipe(steps=40, batch=4, sizes=((96, 64),), first_shards=1, shards=1, warm_up_steps=5)
    shard = pool.render_shard(0, 0, count=4)
    save_file(shard, pool.shard_path(tmp_path, 0))
    shards = compact.Shards(tmp_path)
    straight = compact.Training(recipe)
    at_first = compact.held_out_error(straight.network.state_dict(), shard)
    history = [straight.advance(shards) for _ in range(20)]
    straight.save(tmp_path / "state.pt")
    history += [straight.advance(shards) for _ in range(20)]
    assert compact.held_out_error(straight.network.state_dict(), shard) < 0.85 * at_first

    resumed = compact.Training(recipe)
    resumed.restore(tmp_path / "state.pt")
    continued = [resumed.advance(shards) for _ in range(20)]
    np.testing.assert_allclose(continued, history[20:], rtol=1e-4)

    compact.export(straight.average, tmp_path / "compact.safetensors")
    load_network((tmp_path / "compact.safetensors").read_bytes())
