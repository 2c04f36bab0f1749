"""How many pictures a diffusion network takes at once, from what memory is free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .device import free_cache, is_out_of_memory

if TYPE_CHECKING:
    from .marigold_model import MarigoldModel

T = TypeVar("T")
R = TypeVar("R")

MOST_ROWS = 16  # beyond, a GPU gains nothing more
SHARE = 0.8  # of the free memory: fragments and other programs need some
MAPS_AT_ONCE = 6.0  # of the decoder's widest full-size maps: 5.9 measured on a CPU, in float16, at 192x256
TILED_PX = 1 << 21  # larger pictures are encoded and decoded in tiles
TILE_PX = 1024


def free_bytes(device: torch.device) -> int | None:
    """Memory that a network on `device` can still take; None where that cannot be known, or as much as the RAM."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(cached)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
    return None


def bytes_per_pixel(autoencoder: Any, dtype: torch.dtype) -> float:
    """Peak memory of a pass, by far that of the decoder, for every pixel of the network's input."""
    channels = autoencoder.config.block_out_channels
    widest = channels[min(1, len(channels) - 1)]  # the last upsampling hands over this many channels at full size
    return MAPS_AT_ONCE * int(widest) * dtype.itemsize


def fitting_rows(model: MarigoldModel, dtype: torch.dtype, device: torch.device, pixels: int) -> int:
    """Pictures of so many pixels that pass together, 1 to MOST_ROWS; 1 on a CPU, which gains nothing by more."""
    free = free_bytes(device)
    if free is None:
        return 1
    return max(1, min(MOST_ROWS, int(SHARE * free / (bytes_per_pixel(model.decoder, dtype) * min(pixels, TILED_PX)))))


def in_chunks(run: Callable[[Sequence[T]], list[R]], rows: Sequence[T], size: int) -> list[R]:
    """run(rows), `size` of them at a time, results one after the other; half as many whenever memory does not suffice.

    Raises what torch raises if even one row does not fit.
    """
    done: list[R] = []
    while len(done) < len(rows):
        chunk = rows[len(done) : len(done) + size]
        try:
            done += run(chunk)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(chunk) == 1:
                raise
        size = len(chunk) // 2
        free_cache()  # outside the handler, which holds the tensors of the failed attempt
    return done
