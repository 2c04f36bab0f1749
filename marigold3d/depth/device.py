"""Where a network runs, and what happens when it does not fit there."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import Marigold3DError, ModelError, OutOfMemoryError, UsageError
from .overlap import overlapped

T = TypeVar("T")
U = TypeVar("U")

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then MPS, then the CPU. Raises UsageError if it is absent."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, present in available.items() if present))
    kind = name.split(":")[0]
    if kind not in available:
        raise UsageError(f"unknown device {name!r}: use auto, cpu, cuda or mps")
    if not available[kind]:
        raise UsageError(f"device {name!r} is not available here: use --device auto or --device cpu")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device, on_cpu: torch.dtype = torch.float32) -> torch.dtype:
    """The precision called `name`; "auto" takes float16 on CUDA, where it halves time and memory, `on_cpu` on the CPU,
    float32 elsewhere.
    """
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    known["auto"] = {"cuda": torch.float16, "cpu": on_cpu}.get(device.type, torch.float32)
    if name not in known:
        raise UsageError(f"unknown precision {name!r}: use {', '.join(known)}")
    return known[name]


def native_dtype() -> torch.dtype:
    """The shortest numbers that this CPU multiplies in hardware: float16 (AMX-FP16), bfloat16 (AMX, AVX512-BF16, Arm
    BF16), else float32.

    At equal speed float16 is eight times as exact as bfloat16; its range is checked where it is used. oneDNN's own
    answer will not do: it says yes wherever it can emulate.
    """
    if not torch.backends.mkldnn.is_available():
        return torch.float32
    abilities = _cpu_abilities()
    if abilities & {"amx_fp16"}:
        return torch.float16
    return torch.bfloat16 if abilities & {"amx_bf16", "avx512_bf16", "arm_bf16", "bf16"} else torch.float32


def _cpu_abilities() -> set[str]:
    """Names of this CPU's instruction sets, as far as torch tells."""
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, present in torch.cpu.get_capabilities().items() if present is True}
    before = {"amx_fp16": "_is_amx_fp16_supported", "avx512_bf16": "_is_avx512_bf16_supported"}  # torch before 2.10
    return {name for name, check in before.items() if getattr(torch.cpu, check, bool)()}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or the operating system ran out of memory; the CPU and MPS say so in a plain RuntimeError only."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _OUT_OF_MEMORY)


def load_error(folder: Path, error: Exception) -> Marigold3DError:
    """What to raise where a library failed to load `folder`: it may raise OSError, ValueError, SafetensorError, …"""
    if is_out_of_memory(error):
        return OutOfMemoryError(f"{folder} does not fit in memory: close other programs, or use a smaller model")
    reason = " ".join(str(error).split())[:160]
    return ModelError(f"{folder} cannot be loaded ({type(error).__name__}: {reason}): get the checkpoint again")


def run_within_memory(run: Callable[..., list[T]], rgb: NDArray[np.uint8], *along: Sequence[Any]) -> list[T]:
    """`run(rgb, *along)`, one result a frame of rgb (N, H, W, 3); halves the batch until it fits in memory.

    along: what else there is for each frame, (N,) each. Raises OutOfMemoryError if even one frame does not fit.
    """
    try:
        return run(rgb, *along)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler, so that the traceback no longer holds the tensors of the failed attempt.
    free_cache()
    if len(rgb) <= 1:
        raise OutOfMemoryError(
            f"one {rgb.shape[2]}x{rgb.shape[1]} frame does not fit in memory: lower --processing-resolution, "
            "or use a smaller model or --device cpu"
        )
    half = len(rgb) // 2
    first = run_within_memory(run, rgb[:half], *(part[:half] for part in along))
    return first + run_within_memory(run, rgb[half:], *(part[half:] for part in along))


def in_parallel(work: Callable[[int], T], count: int, device: torch.device) -> Iterator[T]:
    """work(0), work(1), ..., none of them None, in order, a few frames at a time, each on one core.

    The tensors are small: a frame on each core is faster than one frame on all of them, and many times faster where
    other work competes for the cores, since threads that share a frame wait for the slowest. A GPU takes one at a time.
    """
    if count == 1 and torch.get_num_threads() == 1:  # a worker already
        yield work(0)
        return
    with closing(in_parallel_or_waiting(work, count, device)) as results:
        for result in results:
            if result is not None:
                yield result


def in_parallel_or_waiting(
    work: Callable[[int], T], count: int, device: torch.device
) -> Generator[T | None, None, None]:
    """`in_parallel`, and None whenever a moment went by without a result, for callers that must stay responsive.

    Closing it does not wait for work under way, whose results are dropped.
    """
    return on_cores(work, range(count), cores_for(device))


def cores_for(device: torch.device) -> int:
    """How many frames to work on at once, each on one core."""
    return (os.cpu_count() or 1) if device.type == "cpu" else 1


def on_cores(work: Callable[[U], T], items: Iterable[U], count: int) -> Generator[T | None, None, None]:
    """`overlap.overlapped` on `count` threads, each of which keeps torch to one core."""
    before = torch.get_num_threads()
    try:
        yield from overlapped(work, items, count, partial(torch.set_num_threads, 1))
    finally:
        torch.set_num_threads(before)  # threads started later take the latest setting


def free_cache() -> None:
    """Hands memory that torch keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parameters_to(model: Any, device: torch.device) -> Any:
    """`model` on `device`, frozen, in evaluation mode."""
    try:
        return model.to(device).eval().requires_grad_(False)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(f"the model does not fit in the memory of {device}: use --device cpu") from None
        raise
