"""Guided sampling: its gradients and previews are exact, it bends depth to cues, and it beats the best affine fit.

The fixture checkpoints have random weights: guidance can make them meet the cues, but between cues they know nothing.
Whether it helps there is shown on a toy whose latents follow a Gaussian, so that the exact denoiser is known.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from numpy.typing import NDArray

from marigold3d.align import fit_affine
from marigold3d.align.guided import CueCost, GuidedDepth, GuidedEstimator, preview
from marigold3d.align.samples import sample
from marigold3d.depth.images import resized
from marigold3d.depth.marigold import MarigoldEstimator
from marigold3d.errors import GeometryError, InputError, ModelError, OutOfMemoryError, UsageError
from marigold3d.types import Array, Domain, SparseCues

Image = NDArray[np.uint8]

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 50, 71
KEEN: dict[str, Any] = {
    "latent_rate": 0.5,
    "corrections": 40,
    "checkpointing": False,
}  # what random weights take to bend in a few steps


@pytest.fixture
def rgb(rng: np.random.Generator) -> Image:
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def smooth_cues(rng: np.random.Generator, count: int = 40, size: tuple[int, int] = (HEIGHT, WIDTH)) -> SparseCues:
    """Cues on a wavy, tilted plane at depths 2 to 5."""
    uv = rng.uniform(0, (size[1], size[0]), (count, 2))
    x, y = uv[:, 0] / size[1], uv[:, 1] / size[0]
    return SparseCues(uv, 3.5 + 1.2 * (y - 0.5) * 2 + 0.3 * np.sin(6 * x), source="test")


def cue_error(depth: Array, cues: SparseCues) -> float:
    return float(np.mean(np.abs(sample(depth.astype(np.float32), cues.uv) - cues.depth) / cues.depth))


def unguided_error(estimator: MarigoldEstimator, rgb: Image, cues: SparseCues, steps: int) -> float:
    """Error at the cues of the robust affine fit to ordinary sampling."""
    estimator.steps = steps
    relative = estimator.estimate(rgb[None])[0]
    return cue_error(fit_affine(relative, cues).apply(relative).depth, cues)


# -- the pieces -------------------------------------------------------------------------------------------------------


def ddim(prediction: str = "v_prediction") -> Any:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        rescale_betas_zero_snr=prediction != "epsilon",
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_preview_is_the_schedulers(prediction: str) -> None:
    scheduler = ddim(prediction)
    scheduler.set_timesteps(7)
    torch.manual_seed(3)
    output, latent = torch.randn(2, 1, 4, 5, 6, dtype=torch.float64)
    for t in scheduler.timesteps:
        clean, noise = preview(scheduler, output, t, latent)
        theirs = scheduler.step(output, t, latent).pred_original_sample
        torch.testing.assert_close(clean, theirs, rtol=1e-5, atol=1e-6)
        alpha = scheduler.alphas_cumprod[int(t)].double()
        torch.testing.assert_close(alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, latent)


def test_map_is_read_where_the_frame_shows_it(rng: np.random.Generator) -> None:
    cues = smooth_cues(rng, 200)
    low, high = np.percentile(cues.depth, (2, 98))
    for h, w in ((24, 35), (HEIGHT, WIDTH), (90, 120)):
        depth = torch.from_numpy(rng.random((1, 1, h + 3, w + 2)))  # with padding
        cost = CueCost(cues, (HEIGHT, WIDTH), (h, w), "depth", depth)
        assert (cost.low, cost.span) == pytest.approx((low, high - low))
        shown = resized(depth[..., :h, :w].float(), (HEIGHT, WIDTH), antialias=False)[0, 0].numpy()
        residuals = cost.residuals(depth, torch.ones(2, dtype=torch.float64)).numpy() * cost.span
        np.testing.assert_allclose(residuals, sample(shown, cues.uv) * cost.span + cost.low - cues.depth, atol=1e-5)


@pytest.mark.parametrize("domain", ["depth", "disparity"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_gradient_is_the_difference_quotient(rng: np.random.Generator, domain: Domain, prediction: str) -> None:
    scheduler = ddim(prediction)
    cues = smooth_cues(rng, 8, (24, 32))  # as few as are all trusted: trust is held constant in the gradient
    cues = SparseCues(cues.uv, cues.depth, rng.uniform(0.01, 0.3, 8))
    unet = torch.from_numpy(rng.standard_normal((2, 2, 3, 3)))
    decoder = torch.from_numpy(rng.standard_normal((1, 2, 3, 3)))
    latent = torch.from_numpy(rng.standard_normal((1, 2, 6, 8)))
    ab = torch.tensor([1.1, 0.8], dtype=torch.float64)
    cost = CueCost(cues, (24, 32), (24, 32), domain, latent)

    def loss(latent: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
        clean, _ = preview(scheduler, F.conv2d(latent, unet, padding=1), torch.tensor(400), latent)
        return cost(F.interpolate(F.conv2d(clean, decoder, padding=1), scale_factor=4, mode="bilinear"), ab)

    assert torch.autograd.gradcheck(loss, (latent.requires_grad_(), ab.requires_grad_()), eps=1e-6, atol=1e-6)


def test_uncertain_cues_weigh_less(rng: np.random.Generator) -> None:
    cues = smooth_cues(rng, 8)
    sigma = np.full(8, 0.05)
    sigma[0] = 1.0
    depth = torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    cost = CueCost(SparseCues(cues.uv, cues.depth, sigma), depth.shape[2:], depth.shape[2:], "depth", depth)  # type: ignore[arg-type]
    cost(depth, torch.ones(2, dtype=torch.float64)).backward()
    assert depth.grad is not None
    pull = np.abs(sample(depth.grad[0, 0].numpy().astype(np.float32), cues.uv))
    assert pull[0] < 0.3 * pull[1:].min()


# -- random checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "vae", "prediction", "steps"),
    [
        ("ddim", "kl", "v_prediction", 8),
        ("ddim", "tiny", "v_prediction", 8),
        ("ddim", "kl", "epsilon", 8),
        ("ddim", "kl", "sample", 8),
        ("lcm", "kl", "v_prediction", 4),
        ("ddim", "kl", "v_prediction", 1),
        ("lcm", "tiny", "v_prediction", 1),
    ],
)
def test_bends_any_checkpoint_to_the_cues(
    make_marigold: Callable[..., Path],
    rgb: Image,
    rng: np.random.Generator,
    scheduler: str,
    vae: str,
    prediction: str,
    steps: int,
) -> None:
    estimator = MarigoldEstimator(make_marigold(scheduler, vae, prediction), device="cpu")
    cues = smooth_cues(rng)
    guided = GuidedEstimator(estimator, steps=steps, **KEEN).align(rgb, cues)
    assert guided.loss.shape == ((steps if steps > 1 else 0) + KEEN["corrections"],)
    assert guided.loss[-1] < 0.7 * guided.loss[0]
    assert guided.depth.depth.shape == (HEIGHT, WIDTH)
    assert cue_error(guided.depth.depth, cues) < 0.6 * unguided_error(estimator, rgb, cues, steps)
    assert guided.cue_error[1] <= guided.cue_error[0]
    assert guided.depth.sigma is not None
    assert bool((guided.depth.sigma[guided.depth.valid] > 0).all())


def test_sampler_alone_lowers_the_loss(marigold_checkpoint: Path, rgb: Image, rng: np.random.Generator) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    guided = GuidedEstimator(estimator, steps=20, corrections=0, latent_rate=0.3).align(rgb, smooth_cues(rng))
    assert np.mean(guided.loss[-3:]) < 0.75 * np.mean(guided.loss[:3])


def test_equal_input_gives_equal_bytes(marigold_checkpoint: Path, rgb: Image, rng: np.random.Generator) -> None:
    cues = smooth_cues(rng, 200)  # so many that several fall on one pixel
    first, second, kept = (
        GuidedEstimator(
            MarigoldEstimator(marigold_checkpoint, device="cpu"), steps=3, corrections=5, checkpointing=c
        ).align(rgb, cues)
        for c in (True, True, False)
    )
    assert first.depth.depth.tobytes() == second.depth.depth.tobytes()
    np.testing.assert_array_equal(first.loss, second.loss)
    np.testing.assert_allclose(kept.depth.depth, first.depth.depth, rtol=1e-4)


@pytest.mark.parametrize("domain", ["depth", "disparity"])
def test_depth_has_the_units_of_the_cues(
    marigold_checkpoint: Path, tmp_path: Path, rgb: Image, rng: np.random.Generator, domain: Domain
) -> None:
    cues = smooth_cues(rng, 60)
    cues = SparseCues(cues.uv, cues.depth, 0.02 * cues.depth)
    guide = GuidedEstimator(
        MarigoldEstimator(of_domain(marigold_checkpoint, tmp_path, domain), device="cpu"), steps=3, corrections=5
    )
    depth = guide.align(rgb, cues).depth
    factor = 1024.0  # a power of two: no rounding differs
    larger = guide.align(rgb, SparseCues(cues.uv, factor * cues.depth, factor * np.asarray(cues.sigma))).depth
    np.testing.assert_array_equal(depth.valid, larger.valid)
    np.testing.assert_allclose(larger.depth, factor * depth.depth, rtol=1e-4)
    np.testing.assert_allclose(larger.sigma, factor * np.asarray(depth.sigma), rtol=1e-3)


def of_domain(checkpoint: Path, tmp_path: Path, domain: Domain) -> Path:
    folder = tmp_path / domain
    shutil.copytree(checkpoint, folder)
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": domain}))
    return folder


def test_disparity_is_guided_as_disparity(
    marigold_checkpoint: Path, tmp_path: Path, rgb: Image, rng: np.random.Generator
) -> None:
    estimator = MarigoldEstimator(of_domain(marigold_checkpoint, tmp_path, "disparity"), device="cpu")
    cues = smooth_cues(rng)
    guided = GuidedEstimator(estimator, steps=8, **KEEN).align(rgb, cues)
    assert guided.relative.domain == "disparity"
    assert cue_error(guided.depth.depth, cues) < 0.6 * unguided_error(estimator, rgb, cues, 8)
    valid = guided.depth.valid
    disparity = guided.scale * guided.relative.values + guided.shift
    np.testing.assert_allclose(guided.depth.depth[valid], 1 / disparity[valid], rtol=1e-4)


def test_ensemble_is_the_median_of_its_members(marigold_checkpoint: Path, rgb: Image, rng: np.random.Generator) -> None:
    cues = smooth_cues(rng)

    def depth(seed: int, ensemble: int) -> GuidedDepth:
        estimator = MarigoldEstimator(marigold_checkpoint, seed=seed, ensemble=ensemble, device="cpu")
        return GuidedEstimator(estimator, steps=2, corrections=5).align(rgb, cues)

    members = [depth(2024 + k, 1) for k in range(3)]
    together = depth(2024, 3)
    median = np.median([m.depth.depth for m in members], axis=0)
    agree = together.depth.valid & np.all([m.depth.valid for m in members], axis=0)
    assert agree.mean() > 0.5
    np.testing.assert_allclose(together.depth.depth[agree], median[agree], rtol=1e-3)
    np.testing.assert_allclose(together.loss, np.mean([m.loss for m in members], axis=0), rtol=1e-5)
    assert together.relative.uncertainty is not None
    assert together.relative.uncertainty.max() > 0


def test_weights_stay_as_they_are(marigold_checkpoint: Path, rgb: Image, rng: np.random.Generator) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    before = estimator.estimate(rgb[None])[0].values
    with torch.no_grad():  # as a caller may have it
        GuidedEstimator(estimator, steps=2).align(rgb, smooth_cues(rng))
    np.testing.assert_array_equal(estimator.estimate(rgb[None])[0].values, before)
    for network in (estimator.model.unet, estimator.model.vae):
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
        assert not network.is_gradient_checkpointing


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(marigold_checkpoint: Path, rgb: Image, rng: np.random.Generator, dtype: str) -> None:
    cues = smooth_cues(rng)
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu", dtype=dtype)
    guided = GuidedEstimator(estimator, steps=8, **KEEN).align(rgb, cues)
    assert cue_error(guided.depth.depth, cues) < 0.7 * unguided_error(estimator, rgb, cues, 8)


# -- what cannot be done ----------------------------------------------------------------------------------------------


def test_refuses_cues_that_cannot_guide(marigold_checkpoint: Path, rgb: Image, rng: np.random.Generator) -> None:
    guide = GuidedEstimator(MarigoldEstimator(marigold_checkpoint, device="cpu"), steps=2)
    cues = smooth_cues(rng)
    with pytest.raises(GeometryError, match="none of 40 cues falls on the 71x50 image"):
        guide.align(rgb, SparseCues(cues.uv + 1000, cues.depth))
    with pytest.raises(GeometryError, match="none of 0 cues"):
        guide.align(rgb, SparseCues.empty())
    with pytest.raises(GeometryError, match=r"2 of 2 cues .* run without --guide"):
        guide.align(rgb, cues.select(np.arange(2)))
    with pytest.raises(GeometryError, match=r"at about depth 3.* span depths: run without --guide"):
        guide.align(rgb, SparseCues(cues.uv, np.full(40, 3.0)))
    one_outlier = np.full(40, 3.0)
    one_outlier[7] = 30.0
    with pytest.raises(GeometryError, match="span depths"):
        guide.align(rgb, SparseCues(cues.uv, one_outlier))
    assert guide.align(rgb, cues.select(np.arange(3))).depth.valid.any()


def test_refuses_bad_images_and_settings(marigold_checkpoint: Path, rng: np.random.Generator) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    with pytest.raises(InputError, match="uint8"):
        GuidedEstimator(estimator, steps=2).align(np.zeros((8, 8, 3)), smooth_cues(rng))  # type: ignore[arg-type]
    settings: dict[str, Any]
    for settings in ({"steps": 0}, {"iterations": 0}, {"latent_rate": -1.0}, {"corrections": -1}, {"held_out": 0.9}):
        with pytest.raises(UsageError):
            GuidedEstimator(estimator, **settings)
    with pytest.raises(UsageError, match="lower --steps"):
        GuidedEstimator(estimator, steps=100_000)


def test_steps_default_to_the_papers_and_to_one_from_zeros(marigold_checkpoint: Path) -> None:
    assert GuidedEstimator(MarigoldEstimator(marigold_checkpoint, device="cpu")).steps == 50
    assert GuidedEstimator(MarigoldEstimator(marigold_checkpoint, noise="zeros", device="cpu")).steps == 1


def test_damage_and_memory_are_told(
    marigold_checkpoint: Path, rgb: Image, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator = MarigoldEstimator(marigold_checkpoint, device="cpu")
    guide = GuidedEstimator(estimator, steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(estimator, "decode_unclipped", fail_for_memory)
        with pytest.raises(OutOfMemoryError, match=r"71x50 frame .* lower --processing-resolution"):
            guide.align(rgb, smooth_cues(rng))
    estimator.model.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="no finite depth"):
        guide.align(rgb, smooth_cues(rng))


def fail_for_memory(*_: object) -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


# -- where guidance provably helps ------------------------------------------------------------------------------------


class Toy(MarigoldEstimator):
    """Latents (1, 1, 12, 16) from a Gaussian with mean `base` and smooth covariance, their exact denoiser, float64.

    The decoder upsamples bilinearly. What a sample has beyond `base` is a smooth distortion no affine fit can follow.
    """

    def __init__(self, base: Array, noise: Any = "gaussian", ensemble: int = 1, domain: Domain = "depth") -> None:
        self.device, self.dtype, self.name = torch.device("cpu"), torch.float64, "toy"
        self.domain, self.noise, self.ensemble, self.seed, self.processing_resolution = domain, noise, ensemble, 1, 0
        self.steps = 1 if noise == "zeros" else 50
        self.grid, self.base = base.shape, torch.from_numpy(base).reshape(1, -1)
        self.model = SimpleNamespace(scheduler=ddim(), reduction=8, latent_channels=1)  # type: ignore[assignment]

    @cached_property
    def covariance(self) -> Array:
        """(192, 192) squared exponential, 4 latent pixels long, standard deviation 0.3."""
        at = np.stack(np.indices(self.grid), axis=-1).reshape(-1, 2)
        return 0.09 * np.exp(-((at[:, None] - at) ** 2).sum(-1) / 32) + 1e-4 * np.eye(len(at))

    @cached_property
    def spectrum(self) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = np.linalg.eigh(self.covariance)
        return torch.from_numpy(values), torch.from_numpy(vectors)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(image), 1, *self.grid, dtype=torch.float64)

    def decode_unclipped(self, latent: torch.Tensor) -> torch.Tensor:
        return (F.interpolate(latent, scale_factor=8, mode="bilinear") + 1) / 2

    def _initial(self, image_latent: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        return super()._initial(image_latent, generators).double()

    def predict_noise(self, image_latent: torch.Tensor, latent: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Velocity of the posterior mean E[x0 | x_t] = base + sqrt(a) C (a C + 1 - a)^-1 (x_t - sqrt(a) base)."""
        a = self.model.scheduler.alphas_cumprod[int(t)].double()
        values, vectors = self.spectrum
        x = latent.reshape(1, -1)
        gain = a.sqrt() * values / (a * values + 1 - a)
        clean = self.base + ((x - a.sqrt() * self.base) @ vectors * gain) @ vectors.T
        return ((a.sqrt() * x - clean) / (1 - a).sqrt()).reshape(latent.shape)


Scene = tuple[Toy, Image, Array, SparseCues]


def toy_scene(seed: int, count: int = 100, outliers: int = 0, noise: float = 0.0, **settings: Any) -> Scene:
    """A toy, an image, true depth (96, 128) and cues: 1 to 5 units deep, a sample of the toy's own Gaussian."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:12, :16]
    toy = Toy(np.clip(0.6 - 1.6 * y / 11 + 0.25 * np.sin(x / 2.5), -1, 1), **settings)
    latent = toy.base + torch.from_numpy(np.linalg.cholesky(toy.covariance) @ rng.standard_normal(192))
    relative = toy.decode_unclipped(latent.reshape(1, 1, 12, 16))[0, 0].numpy()
    relative = (relative - relative.min()) / np.ptp(relative)
    z = 1 + 4 * relative if toy.domain == "depth" else 1 / (0.2 + 0.8 * relative)
    uv = rng.uniform(0, (128, 96), (count, 2))
    depth = sample(z.astype(np.float32), uv).astype(float) * np.exp(noise * rng.standard_normal(count))
    depth[:outliers] *= rng.choice([0.3, 3.0], outliers)
    return toy, np.zeros((96, 128, 3), np.uint8), z, SparseCues(uv, depth)


def errors(scene: Scene, **settings: Any) -> tuple[float, float, GuidedDepth]:
    """AbsRel over all pixels of the best affine fit to the unguided map (to the truth, not to cues), and guided."""
    toy, rgb, z, cues = scene
    y = z if toy.domain == "depth" else 1 / z
    values = toy.estimate(rgb[None])[0].values.astype(float)
    best = np.polyval(np.polyfit(values.ravel(), y.ravel(), 1), values)
    best = best if toy.domain == "depth" else 1 / best
    guided = GuidedEstimator(toy, checkpointing=False, **settings).align(rgb, cues)
    return absrel(best, z), absrel(guided.depth.depth, z), guided


def absrel(depth: Array, truth: Array) -> float:
    return float(np.mean(np.abs(depth - truth) / truth))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_guidance_beats_the_best_affine_fit(seed: int) -> None:
    affine, guided, result = errors(toy_scene(seed))
    assert guided < affine / 5
    assert guided < 0.03
    assert result.rejected == 0
    assert result.cue_error[1] < 0.01
    assert result.held_out_error < 0.03  # these cues were never seen


def test_corrections_add_to_the_sampler() -> None:
    plain, corrected = (np.mean([errors(toy_scene(s), corrections=n)[1] for s in range(3)]) for n in (0, 20))
    assert corrected < 0.6 * plain
    plain, corrected = (
        np.mean([errors(toy_scene(s, noise=0.03), corrections=n)[1] for s in range(3)]) for n in (0, 20)
    )
    assert corrected < 1.05 * plain


@pytest.mark.parametrize("settings", [{"noise": "zeros"}, {"domain": "disparity"}])
def test_guidance_beats_the_best_affine_fit_elsewhere_too(settings: dict[str, Any]) -> None:
    scene = toy_scene(1)
    toy = Toy(scene[0].base.reshape(12, 16).numpy(), **settings)
    z = scene[2]
    if toy.domain == "disparity":
        relative = (z - 1) / 4
        z = 1 / (0.2 + 0.8 * relative)
    cues = SparseCues(scene[3].uv, sample(z.astype(np.float32), scene[3].uv).astype(float))
    affine, guided, _ = errors((toy, scene[1], z, cues))
    assert guided < affine / 4


def test_outliers_do_not_wreck_it() -> None:
    for seed in range(3):
        clean = errors(toy_scene(seed))[1]
        affine, guided, result = errors(toy_scene(seed, outliers=15))
        assert guided < min(clean + 0.02, affine / 3)
        assert 8 <= result.rejected <= 20


def test_small_objects_are_no_outliers() -> None:
    toy, rgb, _, _ = toy_scene(0)
    uv = np.stack(np.meshgrid(np.arange(8, 128, 12.0), np.arange(8, 96, 12.0)), axis=-1).reshape(-1, 2)
    near = np.all(np.abs(uv - (68, 44)) <= 12, axis=1)  # nine cues, a third of the depth around them
    guided = GuidedEstimator(toy, checkpointing=False, held_out=0).align(rgb, SparseCues(uv, np.where(near, 1.0, 3.0)))
    assert guided.rejected == 0


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_sigma_covers_the_error(noise: float) -> None:
    scene = toy_scene(1, noise=noise)
    depth = errors(scene)[2].depth
    assert depth.sigma is not None
    ratio = np.abs(depth.depth - scene[2]) / depth.sigma
    assert 0.1 < np.median(ratio) < 1.0
    assert np.mean(ratio < 3) > 0.9
