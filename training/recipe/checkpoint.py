"""A checkpoint: a complete Marigold pipeline folder, and in its `training/` what a run needs to go on.

    step-000500/model_index.json unet/ vae/ scheduler/ text_encoder/ tokenizer/   what diffusers and --model open
    step-000500/training/state.pt             optimiser, loss scale, step
    step-000500/training/unet.safetensors     the U-Net itself, where unet/ holds its running average

A folder appears whole or not at all. The parts that do not learn are hard links to one copy, where links can be made.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from marigold3d.atomic import output_error
from marigold3d.depth.checkpoint import read_json
from marigold3d.errors import InputError, OutputError
from training.recipe.config import FIXED_ON_RESUME, Recipe, parse_recipe
from training.recipe.networks import FROZEN, Networks

WEIGHTS = "diffusion_pytorch_model.safetensors"
FORMAT = "0.35.0"  # of model_index.json: the oldest diffusers that opens it
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, eq=False)
class RunState:
    """What a run holds after `step` steps, gathered on one process: names to CPU tensors."""

    step: int
    unet: Mapping[str, Tensor]
    average: Mapping[str, Tensor] | None
    optimiser: dict[str, Any]
    scaler: dict[str, Any] | None


class Checkpoints:
    """The checkpoints in a run's folder `out`."""

    def __init__(self, recipe: Recipe, networks: Networks) -> None:
        self.recipe, self.networks = recipe, networks
        self.out = Path(recipe.out)

    def save(self, state: RunState) -> Path:
        """Write a checkpoint, then remove what is no longer needed of older ones.

        Raises OutputError, with the older ones intact, where it cannot be written.
        """
        folder = self.out / f"step-{state.step:06d}"
        partial = self.out / f".{folder.name}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            self._check_space(state)
            partial.mkdir(parents=True)
            self._write(partial, state)
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
        except (OSError, SafetensorError, RuntimeError) as error:  # the last two are how torch and safetensors say it
            shutil.rmtree(partial, ignore_errors=True)
            raise self._unwritable(folder, error) from error
        self._thin()
        return folder

    def newest(self) -> Path | None:
        """The newest checkpoint that a run can go on from."""
        resumable = [folder for folder in all_checkpoints(self.out) if (folder / "training" / "state.pt").is_file()]
        return resumable[-1] if resumable else None

    def _check_space(self, state: RunState) -> None:
        """Refuse before writing: a full disk is hard to tell from other failures of the writers."""
        tensors = [*state.unet.values(), *(state.average or {}).values(), *_tensors_of(state.optimiser)]
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.out.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.out).free
        if free < needed:
            raise OutputError(
                f"cannot write a checkpoint to {self.out}: it needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
                f"free: free some space and continue with --resume{self._kept()}"
            )

    def _unwritable(self, folder: Path, error: Exception) -> OutputError:
        plain = error if isinstance(error, OSError) else OSError(None, " ".join(str(error).split())[:120])
        return OutputError(f"{output_error(folder, plain)}{self._kept()}")

    def _kept(self) -> str:
        newest = self.newest()
        return f" ({newest} is kept)" if newest else ""

    def _write(self, folder: Path, state: RunState) -> None:
        write_pipeline(folder, self.recipe, self.networks, state.average or state.unet, self._frozen())
        training = folder / "training"
        training.mkdir()
        rest = {"step": state.step, "optimiser": state.optimiser, "scaler": state.scaler}
        torch.save(rest, training / "state.pt")
        if state.average is not None:
            save_file(_contiguous(state.unet), training / "unet.safetensors")
        (training / "recipe.json").write_text(self.recipe.model_dump_json(indent=1), encoding="utf-8")

    def _frozen(self) -> Path:
        """Where to link the frozen parts from: an older checkpoint, else the base, which is copied."""
        older = all_checkpoints(self.out)
        return older[-1] if older else self.networks.folder

    def _thin(self) -> None:
        """Keep the newest `keep` whole, of others those whose step `keep_every` divides, without training state."""
        settings = self.recipe.checkpoint
        for folder in all_checkpoints(self.out)[: -settings.keep]:
            if settings.keep_every and step_of(folder) % settings.keep_every == 0:
                shutil.rmtree(folder / "training", ignore_errors=True)
            else:
                shutil.rmtree(folder, ignore_errors=True)


def write_pipeline(
    folder: Path, recipe: Recipe, networks: Networks, weights: Mapping[str, Tensor], frozen: Path
) -> None:
    """A complete MarigoldDepthPipeline in `folder`, its frozen parts taken from the folder `frozen`."""
    networks.unet.save_config(folder / "unet")
    save_file(_contiguous(weights), folder / "unet" / WEIGHTS, {"format": "pt"})
    sampler_of(recipe, networks).save_pretrained(folder / "scheduler")
    own = (
        frozen.parent.resolve() == Path(recipe.out).resolve()
    )  # links never lead out of the run: others may edit there
    for part in FROZEN:
        shutil.copytree(frozen / part, folder / part, copy_function=_link_or_copy if own else shutil.copyfile)
    settings = recipe.checkpoint
    index = {
        "_class_name": "MarigoldDepthPipeline",
        "_diffusers_version": FORMAT,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", type(sampler_of(recipe, networks)).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "prediction_type": "depth",
        "scale_invariant": True,
        "shift_invariant": True,
        "default_denoising_steps": 1 if recipe.objective == "end_to_end" else settings.denoising_steps,
        "default_processing_resolution": settings.processing_resolution,
    }
    if recipe.objective == "end_to_end":
        index["_noise"] = "zeros"  # what --model starts from; diffusers passes over names with an underscore
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def sampler_of(recipe: Recipe, networks: Networks) -> Any:
    """The scheduler that samples what a recipe trains: DDIM, or LCM with the boundary condition of the distillation."""
    if recipe.objective != "lcm":
        return networks.scheduler
    import diffusers

    changes = {
        "original_inference_steps": recipe.lcm.ddim_steps,
        "timestep_scaling": recipe.lcm.timestep_scaling,
        "timestep_spacing": "trailing",
    }
    return diffusers.LCMScheduler.from_config(networks.scheduler.config, **changes)


def read_state(folder: Path, recipe: Recipe) -> RunState:
    """What `Checkpoints.save` wrote. Raises InputError for a damaged folder or another run's."""
    training = folder / "training"
    _check_same_run(parse_recipe(read_json(training / "recipe.json"), str(training / "recipe.json")), recipe)
    try:
        rest = torch.load(training / "state.pt", weights_only=True, map_location="cpu")
        exported = load_file(folder / "unet" / WEIGHTS)
        own = training / "unet.safetensors"
        unet = load_file(own) if own.is_file() else exported
        average = exported if own.is_file() else None
        return RunState(rest["step"], unet, average, rest["optimiser"], rest["scaler"])
    except Exception as error:  # torch.load raises UnpicklingError, RuntimeError, KeyError, EOFError, …
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{folder} is damaged ({reason}): delete it and resume from the checkpoint before") from error


def all_checkpoints(out: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    found = [folder for folder in out.glob("step-*") if _NAME.fullmatch(folder.name)] if out.is_dir() else []
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """How many steps a checkpoint has seen, by its name."""
    return int(folder.name.removeprefix("step-"))


def _check_same_run(saved: Recipe, recipe: Recipe) -> None:
    changed = [key for key in FIXED_ON_RESUME if getattr(saved, key) != getattr(recipe, key)]
    if (saved.ema_decay > 0) != (recipe.ema_decay > 0):
        changed.append("ema_decay")
    if changed:
        raise InputError(
            f"{recipe.out} holds a run with another {', '.join(changed)}: "
            "resume with its own recipe, or choose another out"
        )


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _contiguous(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors writes neither shared nor strided memory, and channels-last weights are strided."""
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}


def _tensors_of(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        return [tensor for value in tree.values() for tensor in _tensors_of(value)]
    return []
