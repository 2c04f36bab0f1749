"""A pool of rendered scenes on disk, shard by shard; a shard depends on the seed and its number only.

python -m training.pool --out DIR --shards 100 [--first 0] [--seed 0]
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from training import layouts, scenes

WIDTH, HEIGHT = 256, 192
SCENES_A_SHARD, VIEWS_A_SCENE = 64, 2
NEAR_M, FAR_M = 0.2, 80.0  # depth is clamped; FAR_M is also the sky


def render_shot(
    shot: layouts.Shot, rng: np.random.Generator, width: int = WIDTH, height: int = HEIGHT
) -> tuple[Tensor, Tensor]:
    """sRGB (3, H, W) uint8 and log z-depth (1, H, W) float16 of a shot, exposed as a camera would."""
    f_px = width / 2 / np.tan(np.radians(shot.fov_x_deg) / 2)
    K = np.array([[f_px, 0, width / 2], [0, f_px, height / 2], [0, 0, 1]])
    linear, depth = scenes.cast(shot.scene, shot.T_world_camera, K, width, height, shadow_stride=2)
    exposure = 0.22 / float(linear.mean().clamp_min(0.02)) * np.exp(rng.normal(0, 0.45))
    rgb = scenes.develop(linear, exposure, np.exp(rng.normal(0, 0.08, 3)))
    return (rgb * 255).round().to(torch.uint8), depth.clamp(NEAR_M, FAR_M).log().half()


def render_shard(seed: int, number: int, count: int = SCENES_A_SHARD) -> dict[str, Tensor]:
    """`rgb` (N, 3, H, W) uint8 and `log_depth` (N, 1, H, W) float16 of `count` scenes."""
    views = []
    for index in range(count):
        scene_seed = (seed * 1_000_003 + number) * 1_000 + index
        rng = np.random.default_rng(scene_seed + 1)
        views += [render_shot(shot, rng) for shot in layouts.random_shots(scene_seed, VIEWS_A_SCENE)]
    return {"rgb": torch.stack([v[0] for v in views]), "log_depth": torch.stack([v[1] for v in views])}


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard{number:05d}.safetensors"


def fill(folder: Path, seed: int, numbers: range) -> None:
    """Render the missing shards, one thread, each appearing whole or not at all."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = shard_path(folder, number)
        if not path.exists():
            partial = path.with_suffix(f".{os.getpid()}.partial")
            save_file(render_shard(seed, number), partial)
            partial.replace(path)


def load(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """`rgb` and `log_depth` of a shard."""
    arrays = load_file(path)
    return arrays["rgb"].numpy(), arrays["log_depth"].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    fill(args.out, args.seed, range(args.first, args.first + args.shards))


if __name__ == "__main__":
    main()
