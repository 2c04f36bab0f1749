"""Seconds a step and peak memory of guided sampling, with and without checkpointing: a Markdown table.

    python tests/benchmarks/guided_memory.py            networks of the test fixtures' size
    python tests/benchmarks/guided_memory.py --large    also Stable Diffusion 2's size, float32: takes 6 GB

Each case runs in a process of its own, on random weights, which cost the same as trained ones. A step is one of the
sampler's (U-Net and decoder, forward and backward); a correction is one through the decoder alone. The fastest but the
first is timed. Peak memory is the process's largest resident set, the weights and torch itself included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a script sees its own folder only

from tests.conftest import small_autoencoder, small_unet

STEPS = {"small": 8, "large": 2}
SIZES = {"small": [(64, 48), (256, 192)], "large": [(256, 192)]}  # width, height in pixels


def networks(size: str) -> tuple[Any, Any, int]:
    """U-Net, decoder and the channels of the prompt."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    if size == "large":  # the configurations of stabilityai/stable-diffusion-2, with eight input channels
        width = 1024
        unet = UNet2DConditionModel(
            sample_size=96,
            in_channels=8,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=width,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            layers_per_block=2,
            norm_num_groups=32,
            scaling_factor=0.18215,
        )
    else:
        unet, vae = small_unet(), small_autoencoder("kl")
        width = unet.config.cross_attention_dim
    return unet.eval().requires_grad_(False), vae.eval().requires_grad_(False), width


def random_estimator(size: str) -> Any:
    """A MarigoldEstimator whose networks were never written to disk."""
    import torch
    from diffusers import DDIMScheduler

    from marigold3d.depth.marigold import MarigoldEstimator
    from marigold3d.depth.marigold_model import MarigoldModel

    torch.manual_seed(0)
    unet, vae, width = networks(size)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        rescale_betas_zero_snr=True,
    )
    estimator = MarigoldEstimator.__new__(MarigoldEstimator)
    settings = SimpleNamespace(
        device=torch.device("cpu"),
        dtype=torch.float32,
        name=size,
        model=MarigoldModel(unet, vae, scheduler, torch.randn(1, 2, width), "depth", 1, 0),
        domain="depth",
        steps=1,
        ensemble=1,
        seed=1,
        noise="gaussian",
        processing_resolution=0,
    )
    vars(estimator).update(vars(settings))
    return estimator


def measure(size: str, width: int, height: int, checkpointing: bool) -> dict[str, float]:
    """Seconds a step and a correction, and peak memory in MB before and after, of this process."""
    import numpy as np

    from marigold3d.align.guided import GuidedEstimator
    from marigold3d.types import SparseCues

    estimator = random_estimator(size)
    rng = np.random.default_rng(0)
    uv = rng.uniform(0, (width, height), (200, 2))
    cues = SparseCues(uv, 2 + uv[:, 1] / height)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    estimator.estimate(rgb[None])
    unguided = peak_mb()
    guide = GuidedEstimator(estimator, steps=STEPS[size], corrections=STEPS[size], checkpointing=checkpointing)
    times: list[float] = []
    backward = guide._backward

    def timed(*arguments: Any) -> float:
        loss = backward(*arguments)
        times.append(time.perf_counter())
        return loss

    guide._backward = timed  # type: ignore[method-assign]
    guide.align(rgb, cues)
    gaps = np.diff(times)
    return {
        "step_s": float(np.min(gaps[: STEPS[size] - 1])),
        "correction_s": float(np.min(gaps[STEPS[size] :])),
        "unguided_mb": unguided,
        "peak_mb": peak_mb(),
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(size: str, width: int, height: int, checkpointing: bool) -> str:
    """A row of the table, from a fresh process."""
    case = json.dumps([size, width, height, checkpointing])
    done = subprocess.run([sys.executable, __file__, "--case", case], capture_output=True, text=True)
    name = f"| {size} | {width}×{height} | {'yes' if checkpointing else 'no'} "
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return f"{name}| failed: {reason[0]} | | | |"
    r = json.loads(done.stdout.splitlines()[-1])
    return (
        f"{name}| {r['step_s']:.2f} | {r['correction_s']:.2f} | {r['unguided_mb'] / 1024:.2f} "
        f"| {r['peak_mb'] / 1024:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="Stable Diffusion 2's size too")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*json.loads(arguments.case))))
        return
    print(f"{os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}\n")
    print("| networks | image | checkpointing | s a step | s a correction | unguided peak GB | guided peak GB |")
    print("|---|---|---|---|---|---|---|")
    for size in ("small", "large") if arguments.large else ("small",):
        for width, height in SIZES[size]:
            for checkpointing in (False, True):
                print(report(size, width, height, checkpointing), flush=True)


if __name__ == "__main__":
    main()
