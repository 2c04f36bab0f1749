"""What tests of the recipe train from and on: tiny random checkpoints, latent pools, rendered pools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from tests.conftest import small_unet, write_marigold

SMALL = {
    "steps": 4,
    "batch": 4,
    "micro_batch": 2,
    "precision": "fp32",
    "device": "cpu",
    "rate": {"peak": 1e-3, "warmup_steps": 2, "decay_steps": 10},
    "checkpoint": {"every": 2, "denoising_steps": 2, "processing_resolution": 64},
}


def write_stable_diffusion(folder: Path, prediction: str = "v_prediction") -> Path:
    """A tiny random StableDiffusionPipeline folder: conftest's Marigold with a U-Net for one latent."""
    from diffusers import UNet2DConditionModel

    write_marigold(folder, "ddim", "kl", prediction)
    torch.manual_seed(11)
    config = {**small_unet().config, "in_channels": 4}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_latents(root: Path, samples: int = 12, seed: int = 3) -> Path:
    """A pool of `samples` random latents (4, 4, 6) and pixels (32, 48), some of them invalid."""
    rng = torch.Generator().manual_seed(seed)
    image, depth = (torch.randn(2 * samples, 4, 4, 6, generator=rng) for _ in range(2))
    mask = torch.rand(2 * samples, 1, 4, 6, generator=rng) > 0.2
    depth_m = 1.0 + 4.0 * torch.rand(samples, 1, 32, 48, generator=rng)
    root.mkdir(parents=True, exist_ok=True)
    tensors = {"image": image.half(), "depth": depth.half(), "mask": mask, "depth_m": depth_m, "valid": depth_m > 1.5}
    save_file(tensors, root / "latents00000.safetensors")
    return root


def write_pool(root: Path, numbers: range, views: int = 4, size: tuple[int, int] = (48, 64)) -> Path:
    """Shards as training/pool.py writes them: slanted planes with sky above, brighter where nearer; size (H, W)."""
    height, width = size
    rng = np.random.default_rng(5)
    root.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        slope = torch.from_numpy(rng.uniform(0.5, 4.0, (views, 1, 1, 1)))
        rows = torch.linspace(0, 1, height)[None, None, :, None].expand(views, 1, height, width)
        depth = 1.0 + slope * (1.2 - rows)
        depth = torch.where(rows < 0.15, 80.0, depth)
        rgb = (255 / depth).clamp(0, 255).expand(-1, 3, -1, -1)
        tensors = {"rgb": rgb.to(torch.uint8).contiguous(), "log_depth": depth.log().half().contiguous()}
        save_file(tensors, root / f"shard{number:05d}.safetensors")
    return root


def settings(base: Path, out: Path, latents: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of four tiny steps."""
    data = {"sources": [{"kind": "latents", "root": str(latents)}]}
    return {**SMALL, "base": str(base), "out": str(out), "data": data, **changes}


def write_config(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path
