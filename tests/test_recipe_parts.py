"""The parts of the recipe, each by its law: noise, schedule, latents, the process, the three losses, the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from marigold3d.errors import ModelError, UsageError
from tests.recipe_files import settings, write_config, write_stable_diffusion
from training.recipe import latents, noise, objectives
from training.recipe.config import NoiseConfig, RateConfig, Recipe, load_recipe, parse_recipe
from training.recipe.diffusion import Process
from training.recipe.networks import double_input, load_networks
from training.recipe.schedule import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = Path(__file__).parents[1] / "training" / "configs"


# ---------------------------------------------------------------------------------------------------------------- noise


@given(st.sampled_from(["annealed", "multires", "gaussian"]), st.integers(1, 10**9))
@examples(max_examples=20, deadline=None)
def test_noise_depends_on_the_sample_alone_and_has_unit_deviation(kind: str, sample: int) -> None:
    config, shape, share = NoiseConfig(kind=kind), (4, 24, 32), torch.tensor([0.7])
    alone = noise.draw(config, 5, range(sample, sample + 1), shape, share)
    after = noise.draw(config, 5, range(sample - 1, sample + 1), shape, share.expand(2))[1:]
    assert torch.equal(alone, after)
    assert float(alone.std()) == pytest.approx(1.0, abs=0.06 if kind == "gaussian" else 1e-5)


def low_frequency_share(kind: str, t_share: float) -> float:
    """Power of the mean over blocks of 8 x 8 latents against the noise's: 1/64 for white noise."""
    drawn = noise.draw(NoiseConfig(kind=kind), 0, range(60), (4, 32, 32), torch.full((60,), t_share))
    return float(torch.nn.functional.avg_pool2d(drawn, 8).square().mean() / drawn.square().mean())


def test_octaves_add_low_frequencies_which_annealing_removes_with_t() -> None:
    white = low_frequency_share("gaussian", 1.0)
    assert white == pytest.approx(1 / 64, rel=0.1)
    assert low_frequency_share("annealed", 0.0) == pytest.approx(1 / 64, rel=0.1)
    middle, end = low_frequency_share("annealed", 0.5), low_frequency_share("annealed", 1.0)
    assert 2 * white < middle < end
    assert end == pytest.approx(low_frequency_share("multires", 0.0), rel=1e-6)  # strength 0.9 there, whatever t


def test_octaves_below_strength_one_shrink_the_power_of_white_noise_to_its_share() -> None:
    """Neighbouring latents of white noise are uncorrelated; with octaves they are not."""
    drawn = noise.multi_resolution((4, 64, 64), 0.9, torch.Generator().manual_seed(1))
    correlation = float((drawn[..., 1:] * drawn[..., :-1]).mean())
    assert 0.1 < correlation < 0.6


def test_timesteps_are_uniform_and_each_sample_has_its_own() -> None:
    drawn = noise.timesteps(3, range(4000), 1000)
    assert torch.equal(drawn[1000:1010], noise.timesteps(3, range(1000, 1010), 1000))
    assert float(drawn.float().mean()) == pytest.approx(499.5, abs=15)
    assert int(drawn.min()) < 5
    assert int(drawn.max()) > 994


# ------------------------------------------------------------------------------------------------------------- schedule


def test_rate_rises_to_the_peak_and_falls_exponentially_to_a_hundredth() -> None:
    config = RateConfig()
    expected = {0: 3e-7, 49: 1.5e-5, 99: 3e-5, 100: 3e-5, 12_550: 3e-6, 25_000: 3e-7, 30_000: 3e-7}
    for step, rate in expected.items():
        assert learning_rate(config, step) == pytest.approx(rate, rel=1e-9)


# -------------------------------------------------------------------------------------------------------------- latents


@given(st.floats(0.1, 5.0), st.floats(0.0, 20.0), st.integers(0, 99))
@examples(max_examples=25, deadline=None)
def test_normalised_depth_forgets_scale_and_shift(scale: float, shift: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    depth = 1.0 + 9.0 * torch.rand(2, 1, 12, 16, generator=rng)
    valid = torch.rand(depth.shape, generator=rng) > 0.1
    there = latents.affine_invariant(scale * depth + shift, valid)
    torch.testing.assert_close(there, latents.affine_invariant(depth, valid), atol=2e-4, rtol=0)


def test_normalisation_of_a_ramp_by_hand() -> None:
    depth = torch.arange(101.0).view(1, 1, 1, 101)
    valid = torch.ones_like(depth, dtype=torch.bool)
    valid[..., 100] = False  # leaves 0 … 99: its 2 % and 98 % quantiles are 1.98 and 97.02
    normalised = latents.affine_invariant(depth, valid)[0, 0, 0]
    for place, expected in ((0, -1.0), (2, 2 * (2 - 1.98) / 95.04 - 1), (50, 2 * (50 - 1.98) / 95.04 - 1), (99, 1.0)):
        assert float(normalised[place]) == pytest.approx(expected, abs=1e-5)
    assert float(normalised[100]) == latents.FAR


def test_an_image_without_depth_or_without_relief_is_far_and_finite() -> None:
    depth = torch.full((2, 1, 4, 4), 3.0)
    valid = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    valid[1] = True
    assert torch.equal(latents.affine_invariant(depth, valid), torch.full_like(depth, latents.FAR))


def test_a_latent_counts_only_if_all_its_pixels_are_valid() -> None:
    valid = torch.ones(1, 1, 16, 24, dtype=torch.bool)
    valid[0, 0, 3, 15] = False  # in the middle latent of the upper row
    valid[0, 0, 8:, :8] = False  # all of the lower left one
    expected = torch.tensor([[[[True, False, True], [False, True, True]]]])
    assert torch.equal(latents.pooled_mask(valid, 8), expected)


def test_latents_are_the_mode_times_the_scaling_factor_and_odd_borders_are_cut(marigold_checkpoint: Path) -> None:
    vae = load_networks(marigold_checkpoint).vae
    rgb = torch.rand(1, 3, 35, 50)
    with torch.no_grad():
        image, depth, mask = latents.encode_pair(vae, rgb, torch.rand(1, 1, 35, 50), torch.ones(1, 1, 35, 50).bool())
        expected = vae.encode(2 * rgb[..., :32, :48] - 1).latent_dist.mean * 0.18215
    torch.testing.assert_close(image, expected)
    assert image.shape == depth.shape == (1, 4, 4, 6)
    assert mask.shape == (1, 1, 4, 6)


# ------------------------------------------------------------------------------------------------------------- networks


def test_doubled_convolution_answers_as_before_when_both_sides_see_the_same(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    folder = write_stable_diffusion(tmp_path)
    before = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    x, t, prompt = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 2, 16)
    with torch.no_grad():
        expected = before(x, t, prompt).sample
        double_input(before)
        found = before(torch.cat([x, x], dim=1), t, prompt).sample
        loaded = load_networks(folder).unet.eval()(torch.cat([x, x], dim=1), t, prompt).sample
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loaded, expected, atol=1e-5, rtol=1e-5)
    assert before.config.in_channels == 8


def test_a_marigold_checkpoint_is_taken_as_it_stands(marigold_checkpoint: Path) -> None:
    from safetensors.torch import load_file

    unet = load_networks(marigold_checkpoint).unet
    weights = load_file(marigold_checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(unet.conv_in.weight, weights["conv_in.weight"])


def test_zero_signal_needs_a_network_that_does_not_predict_the_noise(tmp_path: Path) -> None:
    folder = write_stable_diffusion(tmp_path, "epsilon")
    with pytest.raises(UsageError, match="zero_snr=false"):
        load_networks(folder)
    scheduler = load_networks(folder, "v_prediction").scheduler
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0.0, abs=1e-9)
    assert load_networks(folder, zero_snr=False).scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("damage", "message"), [("index", "model_index.json is missing"), ("unet", "has no unet/"), ("all", "not exist")]
)
def test_a_folder_that_is_no_pipeline_says_so(tmp_path: Path, damage: str, message: str) -> None:
    folder = tmp_path / "base"
    if damage != "all":
        folder.mkdir()
    if damage == "unet":
        (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ModelError, match=message):
        load_networks(folder)


# -------------------------------------------------------------------------------------------------------------- process


def process_of(tmp_path: Path, prediction: str) -> Process:
    return Process(load_networks(write_stable_diffusion(tmp_path, prediction), zero_snr=False).scheduler, "cpu")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_right_answer_gives_back_latent_and_noise(tmp_path: Path, prediction: str) -> None:
    process = process_of(tmp_path, prediction)
    x0, added, t = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6), torch.tensor([1, 500, 900])
    x_t = process.mix(x0, added, t)
    answer = process.target(x0, added, t)
    torch.testing.assert_close(process.x0(answer, x_t, t), x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(process.noise(answer, x_t, t), added, atol=1e-4, rtol=1e-4)


def test_velocity_and_mixture_are_those_of_diffusers(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    process = Process(scheduler, "cpu")
    x0, added, t = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6), torch.tensor([10, 999])
    torch.testing.assert_close(process.mix(x0, added, t), scheduler.add_noise(x0, added, t))
    torch.testing.assert_close(process.target(x0, added, t), scheduler.get_velocity(x0, added, t))


# ----------------------------------------------------------------------------------------------------------- objectives


def test_masked_mean_counts_what_the_mask_leaves() -> None:
    error = torch.tensor([[[[1.0, 2.0]], [[3.0, 100.0]]]])  # (1, 2, 1, 2)
    mask = torch.tensor([[[[True, False]]]])
    assert float(objectives.masked_mean(error, mask)) == 2.0
    assert float(objectives.masked_mean(error, torch.zeros_like(mask))) == 0.0


def test_affine_invariant_l1_ignores_scale_and_shift_and_counts_metres() -> None:
    depth = 1 + torch.rand(2, 1, 6, 8)
    valid = torch.rand(2, 1, 6, 8) > 0.2
    assert float(objectives.affine_invariant_l1(0.3 * depth - 0.7, depth, valid)) == pytest.approx(0.0, abs=1e-5)
    # By hand: p = (0, 1, 2), d = (0, 0, 3): slope 1.5, mean 1, residuals (0.5, 1, 0.5).
    p, d = torch.tensor([0.0, 1, 2, 9]).view(1, 1, 1, 4), torch.tensor([0.0, 0, 3, 50]).view(1, 1, 1, 4)
    known = torch.tensor([True, True, True, False]).view(1, 1, 1, 4)
    assert float(objectives.affine_invariant_l1(p, d, known)) == pytest.approx(2 / 3, abs=1e-6)


def test_affine_invariant_l1_of_a_flat_prediction_has_a_finite_gradient() -> None:
    flat = torch.zeros(1, 1, 4, 4, requires_grad=True)
    loss = objectives.affine_invariant_l1(flat, torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool))
    loss.backward()
    assert flat.grad is not None
    assert bool(torch.isfinite(flat.grad).all())


def test_the_boundary_condition_is_that_of_diffusers() -> None:
    from diffusers import LCMScheduler

    scheduler = LCMScheduler()
    for t in (0, 19, 999):
        expected = scheduler.get_scalings_for_boundary_condition_discrete(torch.tensor(float(t)))
        for found, wanted in zip(objectives.boundary(torch.tensor([t]), 10.0), expected, strict=True):
            assert float(found) == pytest.approx(float(wanted), abs=1e-6)


def consistency(tmp_path: Path, answer: Any) -> tuple[objectives.Consistency, Process]:
    """Distillation of a teacher whose output is `answer(x_t, t)`."""
    process = Process(load_networks(write_stable_diffusion(tmp_path)).scheduler, "cpu")
    recipe = parse_recipe(settings(tmp_path, tmp_path / "out", tmp_path, objective="lcm", ema_decay=0.9))

    def unet(both: torch.Tensor, t: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (answer(both[:, 4:], t),)

    prompt = torch.zeros(1, 2, 16)
    return objectives.Consistency(recipe.lcm, process, prompt, unet, unet, recipe), process


def test_the_teachers_jump_is_a_step_of_ddim(tmp_path: Path) -> None:
    scheduler = load_networks(write_stable_diffusion(tmp_path / "base")).scheduler
    scheduler.set_timesteps(50)
    distillation, _ = consistency(tmp_path, lambda x, t: torch.sin(x))
    image, x = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 5, 6)
    found, s = distillation.solver_step(image, x, torch.tensor([499]))
    torch.testing.assert_close(found, scheduler.step(torch.sin(x), 499, x).prev_sample, atol=1e-5, rtol=1e-5)
    assert s.tolist() == [479]


def test_a_perfect_teacher_leaves_nothing_to_learn(tmp_path: Path) -> None:
    """If the U-Net knows the latent, it answers with it all along, up to the boundary's share of x_t."""
    truth = torch.randn(1, 4, 5, 6)
    distillation, process = consistency(
        tmp_path,
        lambda x, t: process_v(process, truth, x, t),
    )
    batch = latents.LatentBatch(
        torch.zeros(4, 4, 5, 6), truth.expand(4, -1, -1, -1), torch.ones(4, 1, 5, 6).bool(), range(4)
    )
    assert float(distillation.loss(distillation.teacher, batch)) < 1e-2 * float(truth.abs().mean())


def process_v(process: Process, x0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The velocity at x_t that points to x0."""
    signal, sigma = process.signal_and_noise(t)
    return signal * (x_t - signal * x0) / sigma - sigma * x0


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_comes_along_can_be_read(path: Path) -> None:
    recipe = load_recipe(path, ["base=there", "out=here"])
    assert recipe.base == "there"
    assert 1000 % recipe.lcm.ddim_steps == 0


def test_the_published_settings_are_the_papers() -> None:
    recipe = load_recipe(CONFIGS / "marigold.yaml", ["base=b", "out=o"])
    assert (recipe.batch, recipe.steps, recipe.objective) == (32, 30_000, "diffusion")
    assert (recipe.rate.peak, recipe.rate.decay_steps, recipe.rate.warmup_steps) == (3e-5, 25_000, 100)
    assert [source["weight"] for source in recipe.data.sources] == [0.9, 0.1]
    assert (recipe.noise.kind, recipe.noise.strength) == ("annealed", 0.9)


def test_overrides_are_laid_over_the_file(tmp_path: Path) -> None:
    path = write_config(tmp_path / "r.yaml", settings(tmp_path, tmp_path, tmp_path))
    recipe = load_recipe(path, ["rate.peak=1e-4", "noise.kind=gaussian", "steps=7", "prediction_type=sample"])
    assert (recipe.rate.peak, recipe.noise.kind, recipe.steps) == (1e-4, "gaussian", 7)
    assert recipe.rate.warmup_steps == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepps=3", "unknown key 'stepps', did you mean 'steps'"),
        ("rate.warmup=3", "unknown key 'rate.warmup', did you mean 'warmup_steps'"),
        ("noise.kind=pink", "noise.kind='pink'"),
        ("batch=5", "batch (5) must be a multiple of micro_batch (2)"),
        ("objective=lcm", "needs ema_decay > 0"),
        ("steps", "is no override"),
        ("steps.a=1", "steps is not a section"),
        ("rate.peak=-1", "greater than 0"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(tmp_path: Path, override: str, message: str) -> None:
    path = write_config(tmp_path / "r.yaml", settings(tmp_path, tmp_path, tmp_path))
    with pytest.raises(UsageError) as caught:
        load_recipe(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", None])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "r.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=r"r\.yaml"):
        load_recipe(path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    content = settings(tmp_path, tmp_path, tmp_path)
    del content["base"]
    with pytest.raises(UsageError, match="base must be given"):
        parse_recipe(content)


def test_a_recipe_survives_being_written(tmp_path: Path) -> None:
    recipe = parse_recipe(settings(tmp_path, tmp_path, tmp_path))
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
