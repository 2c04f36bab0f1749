"""Procedural scenes as an endless source: sample i is rendered when it is asked for, where the network is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from marigold3d.depth.device import choose_device
from marigold3d.errors import UsageError
from training import layouts, pool, scenes, solids
from training.assets import Library
from training.data.samples import ENDLESS, Sample

DOMAINS = ("indoor", "outdoor")
MOST_TRIES = 1000


class Procedural:
    """Sample i is one view (3, height, width) of one scene, a function of the settings and of i alone.

    `domains`: shares of "indoor" and "outdoor" scenes, such as {"indoor": 0.9, "outdoor": 0.1}; without it, as
    `layouts.random_shots` mixes them. `assets`: folder of models written by training.assets, to furnish scenes with;
    they are traced on the CPU whatever the device. `device`: cpu, cuda, cuda:1, … or auto; samples are made and stay
    there. The sky's depth is unknown.
    """

    def __init__(
        self,
        height: int,
        width: int,
        seed: int = 0,
        domains: Mapping[str, float] | None = None,
        assets: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        if height < 1 or width < 1:
            raise UsageError(f"procedural: {height}x{width} is no size: give height and width in pixels")
        if seed < 0:
            raise UsageError(f"procedural: seed={seed} is negative: give 0 or more")
        self.name, self.height, self.width, self.seed = "procedural", height, width, seed
        self.indoor_share = None if domains is None else _indoor_share(domains)
        self.library = None if assets is None else Library(Path(assets))
        self.device = choose_device(device)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < ENDLESS:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, index))
        shot = self.shot(rng)
        linear, depth = scenes.cast(
            shot.scene,
            shot.T_world_camera,
            shot.camera_matrix(self.width, self.height),
            self.width,
            self.height,
            device=self.device,
            shadow_stride=2,
        )
        valid = depth < pool.FAR_M
        depth_m = torch.where(valid, depth.clamp_min(pool.NEAR_M), 0.0)
        return Sample(scenes.photographed(linear, rng), depth_m, valid, f"{self.name}/{self.seed}/{index}")

    def shot(self, rng: np.random.Generator) -> layouts.Shot:
        """The first view of the first random scene of the domain that this sample is to have."""
        indoor = None if self.indoor_share is None else rng.random() < self.indoor_share
        for _ in range(MOST_TRIES):
            (shot,) = layouts.random_shots(int(rng.integers(2**62)), 1, self.library)
            if indoor is None or is_indoor(shot) == indoor:
                return shot
        raise RuntimeError(f"none of {MOST_TRIES} random scenes is {DOMAINS[not indoor]}")


def is_indoor(shot: layouts.Shot) -> bool:
    """Whether a shot's scene is inside a room."""
    return bool((shot.scene.kinds == solids.ROOM).any())


def _indoor_share(domains: Mapping[str, float]) -> float:
    unknown = [name for name in domains if name not in DOMAINS]
    if unknown:
        raise UsageError(f"procedural: no domain {unknown[0]!r}: use {' and '.join(DOMAINS)}")
    shares = [float(domains.get(name, 0.0)) for name in DOMAINS]
    if min(shares) < 0 or sum(shares) <= 0:
        raise UsageError(f"procedural: domains={dict(domains)} are no shares: give positive numbers")
    return shares[0] / sum(shares)
