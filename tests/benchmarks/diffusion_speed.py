"""Latent diffusion against diffusers.MarigoldDepthPipeline: the same weights, in the same run.

    python tests/benchmarks/diffusion_speed.py                    # CPU: 384x512, float32 and half precision
    python tests/benchmarks/diffusion_speed.py --gpu              # CUDA: 768 px, batch 1 and the best, eager, compiled
    python tests/benchmarks/diffusion_speed.py --size small       # a minute: that the script runs

The networks have the sizes of Stable Diffusion 2 (866 M and 84 M parameters) and seeded random weights, made in
a temporary folder of 4 GB. Runs alternate with those of diffusers in float32, so that a busy machine slows both alike;
the best of `--rounds` counts. Error: RMS difference to diffusers in float32, over its prediction's standard deviation.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conftest import write_marigold

SD2_UNET = {
    "sample_size": 96,
    "in_channels": 8,
    "out_channels": 4,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SD2_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 768,
}


def write_checkpoint(folder: Path, size: str) -> None:
    """A Marigold checkpoint with random weights; small ones are those of the tests."""
    write_marigold(folder, "ddim", "kl", "v_prediction")
    if size == "small":
        return
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    UNet2DConditionModel(**SD2_UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**SD2_VAE).save_pretrained(folder / "vae")
    text = json.loads((folder / "text_encoder" / "config.json").read_text())
    wide = CLIPTextConfig(**(text | {"hidden_size": SD2_UNET["cross_attention_dim"], "num_attention_heads": 16}))
    CLIPTextModel(wide).save_pretrained(folder / "text_encoder")


@dataclass(eq=False)
class Competitor:
    """Something that estimates frames (N, H, W, 3); its times are kept."""

    name: str
    estimate: Callable[[np.ndarray], np.ndarray]
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    depth: np.ndarray = field(default_factory=lambda: np.zeros(0))
    peak_mb: float = float("nan")

    def run(self, rgb: np.ndarray, device: str) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        wall, cpu = time.perf_counter(), time.process_time()
        self.depth = self.estimate(rgb)
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)
        if device == "cuda":
            self.peak_mb = torch.cuda.max_memory_allocated() / 1e6


def of_diffusers(folder: Path, dtype: torch.dtype, device: str, seed: int, compiled: bool = False) -> Competitor:
    """diffusers' own pipeline, with its progress bars off."""
    from diffusers import MarigoldDepthPipeline

    pipeline = MarigoldDepthPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    if compiled:
        pipeline.unet = torch.compile(pipeline.unet, mode="reduce-overhead", fullgraph=True)
        pipeline.vae.decoder = torch.compile(pipeline.vae.decoder)
        pipeline.vae.encoder = torch.compile(pipeline.vae.encoder)

    def estimate(rgb: np.ndarray) -> np.ndarray:
        each = [torch.Generator().manual_seed(seed) for _ in rgb]
        found = pipeline(rgb, num_inference_steps=1, processing_resolution=0, batch_size=len(rgb), generator=each)
        return np.asarray(found.prediction[..., 0])

    name = f"diffusers {str(dtype).removeprefix('torch.')}{', compiled' if compiled else ''}"
    return Competitor(name, estimate)


def of_marigold3d(folder: Path, dtype: str, device: str, seed: int, compiled: bool = False) -> Competitor:
    """`MarigoldEstimator` of this package."""
    from marigold3d.depth.marigold import MarigoldEstimator

    estimator = MarigoldEstimator(
        folder, steps=1, processing_resolution=0, seed=seed, device=device, dtype=dtype, compiled=compiled
    )

    def estimate(rgb: np.ndarray) -> np.ndarray:
        return np.stack([depth.values for depth in estimator.estimate(rgb)])

    chosen = str(estimator.dtype).removeprefix("torch.")
    label = f"{dtype} ({chosen})" if dtype == "auto" else dtype
    return Competitor(f"marigold3d {label}{', compiled' if compiled else ''}", estimate)


def scene(height: int, width: int) -> np.ndarray:
    """A smooth picture with edges and noise, (H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / max(height, width)
    discs = sum(np.hypot(y - a, x - b) < r for a, b, r in rng.uniform(0.1, 0.8, (12, 3)) * (1, 1, 0.3))
    base = np.stack([y, x, np.sin(9 * x * y)], axis=-1) * 120 + 30 * np.asarray(discs)[..., None]
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def cpu_table(args: argparse.Namespace, folder: Path) -> None:
    """Seconds a frame, and errors."""
    height, width = (384, 512) if args.size == "sd2" else (96, 128)
    rgb = scene(height, width)[None]
    base = of_diffusers(folder, torch.float32, "cpu", 1)
    base.run(rgb, "cpu")  # the first run of anything allocates and chooses kernels
    print(f"{width}x{height}, {torch.get_num_threads()} threads, best of {args.rounds}; spread {base.depth.std():.3f}")
    print(
        "| | wall s | CPU s | diffusers float32, CPU s | times faster | error |\n|---|---|---|---|---|---|", flush=True
    )
    for make, dtype in (
        (of_marigold3d, "float32"),
        (of_diffusers, torch.bfloat16),
        (of_marigold3d, "bfloat16"),
        (of_marigold3d, "auto"),
    ):
        if str(dtype).removeprefix("torch.") not in args.only:
            continue
        row: Competitor = make(folder, dtype, "cpu", 1)  # type: ignore[operator]
        row.run(rgb, "cpu")
        beside = Competitor("", base.estimate)
        for _ in range(args.rounds):
            beside.run(rgb, "cpu")
            row.run(rgb, "cpu")
        cpu_s, base_s = min(row.cpu_s[1:]), min(beside.cpu_s)
        print(
            f"| {row.name} | {min(row.wall_s[1:]):.1f} | {cpu_s:.1f} | {base_s:.1f} | {base_s / cpu_s:.1f} "
            f"| {error(row, base):.4f} |",
            flush=True,
        )
        del row
        gc.collect()


def gpu_table(args: argparse.Namespace, folder: Path) -> None:
    """Frames a second at 768 px, peak memory."""
    frame = scene(576, 768) if args.size == "sd2" else scene(96, 128)
    print(f"{torch.cuda.get_device_name()}, {frame.shape[1]}x{frame.shape[0]}, best of {args.rounds}")
    print("| | batch | frames/s | peak MB | error |\n|---|---|---|---|---|")
    base = of_diffusers(folder, torch.float32, "cuda", 1)
    base.run(frame[None], "cuda")
    for make, dtype, compiled in (
        (of_diffusers, torch.float16, False),
        (of_marigold3d, "float16", False),
        (of_diffusers, torch.float16, True),
        (of_marigold3d, "float16", True),
    ):
        for batch in args.batches:
            row: Any = make(folder, dtype, "cuda", 1, compiled)  # type: ignore[arg-type]
            rgb = np.repeat(frame[None], batch, axis=0)
            for _ in range(args.rounds + 2):  # the first ones compile and choose kernels
                row.run(rgb, "cuda")
            speed = batch / min(row.wall_s[2:])
            row.depth = row.depth[:1]
            print(f"| {row.name} | {batch} | {speed:.2f} | {row.peak_mb:.0f} | {error(row, base):.4f} |", flush=True)
            del row
            gc.collect()
            torch.cuda.empty_cache()


def error(row: Competitor, base: Competitor) -> float:
    """RMS difference, over the standard deviation of the base."""
    return float(np.sqrt(np.mean((row.depth - base.depth) ** 2)) / base.depth.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["sd2", "small"], default="sd2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["float32", "bfloat16", "auto"], help="precisions, on the CPU")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_checkpoint(folder, args.size)
        (gpu_table if args.gpu else cpu_table)(args, folder)


if __name__ == "__main__":
    main()
