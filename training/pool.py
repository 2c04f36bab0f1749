"""A pool of rendered scenes on disk, shard by shard; a shard depends on the seed and its number only.

python -m training.pool --out DIR --shards 100 [--first 0] [--seed 0] [--assets DIR]
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
from training.assets import Library
from training.tracer import Tracer

WIDTH, HEIGHT = 256, 192
SCENES_A_SHARD, VIEWS_A_SCENE = 32, 4
LEAST_RELIEF = 0.12
NEAR_M, FAR_M = 0.2, 80.0  # depth is clamped; FAR_M is also the sky


def render_shot(
    shot: layouts.Shot,
    rng: np.random.Generator,
    width: int = WIDTH,
    height: int = HEIGHT,
    tracer: Tracer | None = None,
) -> tuple[Tensor, Tensor]:
    """sRGB (3, H, W) uint8 and log z-depth (1, H, W) float16 of a shot, exposed as a camera would."""
    K = shot.camera_matrix(width, height)
    linear, depth = scenes.cast(shot.scene, shot.T_world_camera, K, width, height, shadow_stride=2, tracer=tracer)
    return scenes.photographed(linear, rng), depth.clamp(NEAR_M, FAR_M).log().half()


def render_shard(
    seed: int, number: int, count: int = SCENES_A_SHARD, library: Library | None = None
) -> dict[str, Tensor]:
    """`rgb` (N, 3, H, W) uint8 and `log_depth` (N, 1, H, W) float16: VIEWS_A_SCENE views of each of `count` scenes."""
    views: list[tuple[Tensor, Tensor]] = []
    for index in range(count):
        scene_seed = (seed * 1_000_003 + number) * 1_000 + index
        views += render_scene(scene_seed, library)
    return {"rgb": torch.stack([v[0] for v in views]), "log_depth": torch.stack([v[1] for v in views])}


def render_scene(seed: int, library: Library | None = None) -> list[tuple[Tensor, Tensor]]:
    """VIEWS_A_SCENE views of one scene, the plain ones passed over while there are others."""
    rng = np.random.default_rng(seed + 1)
    shots = layouts.random_shots(seed, VIEWS_A_SCENE if library is None else 2 * VIEWS_A_SCENE, library)
    if library is None:
        return [render_shot(shot, rng) for shot in shots]
    tracer = scenes.tracer_of(shots[0].scene)
    ranked = sorted(shots, key=lambda shot: shot.may_be_plain or relief(shot, tracer) > LEAST_RELIEF, reverse=True)
    return [render_shot(shot, rng, tracer=tracer) for shot in ranked[:VIEWS_A_SCENE]]


def relief(shot: layouts.Shot, tracer: Tracer) -> float:
    """How little of a coarse view one plane explains: standard deviation of what is left of 1/z after its best fit,
    against the mean of 1/z. A view of a bare wall has none.
    """
    K = shot.camera_matrix(32, 24)
    direction = scenes.rays(shot.T_world_camera, K, 32, 24)
    inverse = 1 / scenes.depth_along(shot.scene, shot.T_world_camera, direction, tracer).clamp(NEAR_M, FAR_M).double()
    v, u = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 32), indexing="ij")
    plane = torch.stack((u.flatten(), v.flatten(), torch.ones(u.numel())), 1).double()
    left = inverse.flatten() - plane @ torch.linalg.lstsq(plane, inverse.flatten()[:, None]).solution[:, 0]
    return float(left.std() / inverse.mean())


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard{number:05d}.safetensors"


def fill(folder: Path, seed: int, numbers: range, assets: Path | None = None) -> None:
    """Render the missing shards, one thread, each appearing whole or not at all."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    library = None if assets is None else Library(assets)
    for number in numbers:
        path = shard_path(folder, number)
        if not path.exists():
            partial = path.with_suffix(f".{os.getpid()}.partial")
            save_file(render_shard(seed, number, library=library), partial)
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
    parser.add_argument("--assets", type=Path, help="folder of models that training.assets wrote")
    args = parser.parse_args()
    fill(args.out, args.seed, range(args.first, args.first + args.shards), args.assets)


if __name__ == "__main__":
    main()
