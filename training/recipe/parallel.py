"""One process or many: what accelerate gives (devices, mixed precision, gradients averaged over processes), and
parameters sharded over them (FSDP), gathered for checkpoints and scattered again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as gathered
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from marigold3d.errors import UsageError
from training.recipe.config import Recipe

_WHOLE = gathered.StateDictOptions(full_state_dict=True, cpu_offload=True)
_SCATTER = gathered.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def accelerator_of(recipe: Recipe) -> Accelerator:
    """Joins the processes that torchrun or accelerate started; alone otherwise."""
    if recipe.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {recipe.device!r}: use auto, cpu or cuda")
    on_cpu = recipe.device == "cpu" or not torch.cuda.is_available()
    if on_cpu and recipe.device == "cuda":
        raise UsageError("device cuda is not available here: use device=cpu")
    if on_cpu and recipe.precision == "fp16":
        raise UsageError("precision fp16 needs a GPU: use precision=bf16 or precision=fp32")
    # Only the U-Net's parameters get gradients, all of them in every step; buffers never change.
    settings = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    AcceleratorState._reset_state()  # a process may train one recipe after another, in another precision
    mixed = "no" if recipe.precision == "fp32" else recipe.precision
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed, kwargs_handlers=[settings])
    if recipe.micro_batches % accelerator.num_processes:
        raise UsageError(
            f"{recipe.batch} samples a step in micro-batches of {recipe.micro_batch} cannot be shared among "
            f"{accelerator.num_processes} processes: make batch a multiple of micro_batch times processes"
        )
    if recipe.sharded and accelerator.num_processes == 1:
        raise UsageError("sharded training needs several processes: start it with torchrun, or use sharded=false")
    return accelerator


def shard(unet: Any) -> None:
    """Split a U-Net's parameters among the processes, block by block, in place."""
    for block in (*unet.down_blocks, *([unet.mid_block] if unet.mid_block is not None else []), *unet.up_blocks):
        fully_shard(block)
    fully_shard(unet)


def without_sync(accelerator: Accelerator, unet: Any, last: bool) -> AbstractContextManager[Any]:
    """A context for one micro-batch of several: gradients meet those of other processes in the `last` only."""
    if isinstance(unet, FSDPModule):
        unet.set_requires_gradient_sync(last)
        last = True
    return nullcontext() if last else accelerator.no_sync(unet)


def blend(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * network, each process its own share."""
    with torch.no_grad():
        for mean, value in zip(average.parameters(), network.parameters(), strict=True):
            _local(mean).lerp_(_local(value), 1.0 - decay)


def mean_over_processes(accelerator: Accelerator, value: Tensor) -> float:
    """The mean of a scalar over all processes."""
    return float(accelerator.reduce(value.detach().float().reshape(1), "mean"))


def whole(value: Tensor) -> float:
    """A scalar that may be shared among processes."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is set on any process: all decide alike."""
    if accelerator.num_processes == 1:
        return flag
    return float(accelerator.reduce(torch.tensor([float(flag)], device=accelerator.device), "sum")) > 0


def gather_weights(network: nn.Module) -> dict[str, Tensor]:
    """The whole weights, on the CPU of the first process; all processes must call."""
    return gathered.get_model_state_dict(network, options=_WHOLE)


def scatter_weights(network: nn.Module, weights: Mapping[str, Tensor], accelerator: Accelerator) -> None:
    """Put whole weights, known to the first process at least, back into the network of every process."""
    gathered.set_model_state_dict(network, dict(weights), options=_options(accelerator))


def gather_optimiser(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's whole state by parameter names, on the CPU of the first process; all processes must call."""
    return gathered.get_optimizer_state_dict(network, optimiser, options=_WHOLE)


def scatter_optimiser(
    network: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any], accelerator: Accelerator
) -> None:
    """Put it back."""
    gathered.set_optimizer_state_dict(network, optimiser, state, options=_options(accelerator))


def _options(accelerator: Accelerator) -> gathered.StateDictOptions:
    return _SCATTER if accelerator.num_processes > 1 else gathered.StateDictOptions(full_state_dict=True)


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
