"""What a run is: one frozen model, read from a YAML file and overrides; every default beside its name.

The defaults are Marigold's own: Ke et al. (arXiv 2312.02145), sec. 3.3 and 4.1, and their train_marigold_depth.yaml.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from marigold3d.errors import UsageError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NoiseConfig(_Section):
    """What is added to the depth latent."""

    kind: Literal["annealed", "multires", "gaussian"] = "annealed"
    strength: float = Field(default=0.9, ge=0.0, le=1.0)  # of each coarser octave against the one before


class RateConfig(_Section):
    """The learning rate: linear warm-up, then an exponential fall to `final_ratio` at `decay_steps`, kept after."""

    peak: float = Field(default=3e-5, gt=0.0)
    final_ratio: float = Field(default=0.01, gt=0.0, le=1.0)
    decay_steps: int = Field(default=25_000, ge=1)
    warmup_steps: int = Field(default=100, ge=0)


class LcmConfig(_Section):
    """Latent consistency distillation (Luo et al., arXiv 2310.04378), of a teacher that is the base checkpoint."""

    ddim_steps: int = Field(default=50, ge=2)  # the solver's grid: 1000 / 50 = 20 timesteps a jump, the paper's k
    loss: Literal["huber", "l2"] = "huber"
    huber_c: float = Field(default=1e-3, gt=0.0)
    timestep_scaling: float = Field(default=10.0, gt=0.0)  # of the boundary condition, and of LCMScheduler at inference


class DataConfig(_Section):
    """Sources as `training.data.open_sources` takes them, or {kind: pool, …}; or one {kind: latents, root: …} alone."""

    sources: tuple[dict[str, Any], ...] = Field(min_length=1)
    flip: float = Field(default=0.5, ge=0.0, le=1.0)  # share of samples mirrored
    workers: int = Field(default=0, ge=0)  # processes that read ahead; 0: a thread, which sources on a GPU need


class ValidationConfig(_Section):
    """Pictures that are never trained on, judged by affine least squares in depth; no sources: no validation."""

    sources: tuple[dict[str, Any], ...] = ()
    samples: int = Field(default=32, ge=1)
    every: int = Field(default=500, ge=1)  # steps
    denoising_steps: int = Field(default=1, ge=1)
    pictures: int = Field(default=4, ge=0)  # of the samples, shown in TensorBoard


class CheckpointConfig(_Section):
    """When the run is written, and what stays."""

    every: int = Field(default=500, ge=1)  # steps
    keep: int = Field(default=2, ge=1)  # newest ones, with the state to resume from
    keep_every: int | None = Field(default=2000, ge=1)  # pipelines kept for good, without that state
    denoising_steps: int = Field(default=4, ge=1)  # what the pipeline does unless told otherwise
    processing_resolution: int = Field(default=768, ge=0)  # longest side, px


class Recipe(_Section):
    """A whole run. Steps are optimiser steps; `batch` samples make one, over all processes."""

    base: str  # folder in diffusers' format: a StableDiffusionPipeline or a MarigoldDepthPipeline
    out: str
    data: DataConfig
    objective: Literal["diffusion", "end_to_end", "lcm"] = "diffusion"
    steps: int = Field(default=30_000, ge=1)  # converges at about 20 000; the paper's run has 18 000
    minutes: float | None = Field(default=None, gt=0.0)  # stop and save after so long, for queues; --resume goes on
    batch: int = Field(default=32, ge=1)
    micro_batch: int = Field(default=2, ge=1)  # samples a process holds at once, all from one source
    seed: int = Field(default=2024, ge=0)
    noise: NoiseConfig = NoiseConfig()
    rate: RateConfig = RateConfig()
    lcm: LcmConfig = LcmConfig()
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None  # None: the checkpoint's own
    zero_snr: bool = True  # no signal is left at the last timestep, where sampling starts
    gradient_clip: float | None = Field(default=None, gt=0.0)  # largest norm
    ema_decay: float = Field(default=0.0, ge=0.0, lt=1.0)  # 0: none; else checkpoints hold the running average
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    gradient_checkpointing: bool = False
    sharded: bool = False  # parameters, gradients and Adam's moments split among the processes (FSDP)
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int = Field(default=10, ge=1)  # steps between two points of the curves
    device: str = "auto"  # auto, cuda or cpu

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.batch % self.micro_batch:
            raise ValueError(f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch})")
        if self.sharded and self.precision == "fp16":
            raise ValueError("sharded training needs precision bf16 or fp32: fp16 loss scaling is not shared")
        if self.objective == "lcm" and self.ema_decay == 0.0:
            raise ValueError("objective lcm needs ema_decay > 0: the running average is its target network")
        if self.objective == "lcm" and 1000 % self.lcm.ddim_steps:
            raise ValueError(f"lcm.ddim_steps ({self.lcm.ddim_steps}) must divide the 1000 timesteps")
        return self

    @property
    def micro_batches(self) -> int:
        """Micro-batches that make a step, over all processes."""
        return self.batch // self.micro_batch


FIXED_ON_RESUME = ("base", "data", "objective", "batch", "micro_batch", "seed", "noise", "lcm", "zero_snr")
"""What must not change between a run and its continuation: the same step would mean something else."""


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `key=value` or `section.key=value` overrides laid over it.

    Raises UsageError, in one line, for a file that cannot be read, an unknown key (with the nearest known one), or a
    value that does not fit.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} does not hold a recipe: it must be a mapping of keys to values")
    for override in overrides:
        _lay_over(content, override)
    return parse_recipe(content, str(path))


def parse_recipe(content: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """The recipe in a mapping; `origin` names it in errors."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{origin}: {_one_line(error)}") from None


def _lay_over(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"{override!r} is no override: write key=value, such as rate.peak=1e-4")
    *sections, key = name.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UsageError(f"cannot set {name}: {section} is not a section")
    try:
        content[key] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"{override!r}: {text!r} is no YAML value") from None


def _one_line(error: ValidationError) -> str:
    """The first thing that is wrong, and how many more there are."""
    problems = error.errors()
    first, more = problems[0], len(problems) - 1
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        text = f"unknown key {where!r}{_nearest(first['loc'])}"
    elif first["type"] == "missing":
        text = f"{where} must be given"
    elif first["type"] == "value_error":
        text = str(first["ctx"]["error"])
    else:
        text = f"{where}={first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return text + (f" (and {more} more)" if more else "")


def _nearest(location: tuple[str | int, ...]) -> str:
    """ ", did you mean …?" among the keys of the section in which the unknown one stands."""
    section: Any = Recipe
    for part in location[:-1]:
        field = section.model_fields.get(str(part))
        section = field.annotation if field else Recipe
    every = list(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), every, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f": use one of {', '.join(every)}"


OBJECTIVES = get_args(Recipe.model_fields["objective"].annotation)
