"""Noise and timesteps as functions of (seed, sample): any number of processes, and any resumed run, draw the same.

Multi-resolution noise (Whitaker 2023, adopted by Ke et al., arXiv 2312.02145, sec. 3.3): coarser and coarser octaves
of white noise are added, so that the network must also undo errors of low frequency, which plain noise leaves visible.
Annealed: the octaves' strength falls with t, down to white noise at t = 0.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.recipe.config import NoiseConfig

OCTAVES = 10


class Stream(IntEnum):
    """What random numbers are for: streams never share them."""

    TIMESTEP = 0
    NOISE = 1
    NETWORK = 2


def generator(seed: int, stream: Stream, sample: int) -> torch.Generator:
    """A CPU generator for one sample of one stream: all devices draw alike."""
    state = np.random.SeedSequence((seed, int(stream), sample)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def timesteps(seed: int, samples: range, count: int) -> Tensor:
    """(len(samples),) int64, each uniform in 0 … count - 1."""
    drawn = [torch.randint(count, (), generator=generator(seed, Stream.TIMESTEP, sample)) for sample in samples]
    return torch.stack(drawn)


def draw(config: NoiseConfig, seed: int, samples: range, shape: tuple[int, int, int], t_share: Tensor) -> Tensor:
    """(N, C, h, w) float32 noise of unit standard deviation each, on the CPU; shape (C, h, w).

    t_share (N,) is t / T in 0..1 of each sample, which anneals the octaves.
    """
    every = []
    for sample, share in zip(samples, t_share.tolist(), strict=True):
        rng = generator(seed, Stream.NOISE, sample)
        if config.kind == "gaussian":
            every.append(torch.randn(shape, generator=rng))
        else:
            strength = config.strength * (share if config.kind == "annealed" else 1.0)
            every.append(multi_resolution(shape, strength, rng))
    return torch.stack(every)


def multi_resolution(shape: tuple[int, int, int], strength: float, rng: torch.Generator) -> Tensor:
    """(C, h, w) of unit standard deviation: white noise, and octave i, upsampled, with weight strength^i.

    Each octave is smaller than the one before by r^i, r drawn from U[2, 4], until a side is one latent. Octave 0 has
    the full size too, which is why the white part weighs sqrt(2): as in Marigold's code, whose results it gave.
    """
    channels, height, width = shape
    noise = math.sqrt(2.0) * torch.randn(shape, generator=rng)
    h, w = height, width
    for octave in range(1, OCTAVES):
        if strength == 0.0:
            break
        shrink = float(2.0 + 2.0 * torch.rand((), generator=rng)) ** octave
        h, w = max(1, int(h / shrink)), max(1, int(w / shrink))
        coarse = torch.randn((1, channels, h, w), generator=rng)
        noise += strength**octave * functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        if h == 1 or w == 1:
            break
    return noise / noise.std()
