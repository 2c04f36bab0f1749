"""Names of depth models, where their weights come from, and under which licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..config import DepthConfig
from ..errors import ModelError, UsageError
from ..types import Domain
from .protocol import DepthEstimator

Family = Literal["compact", "marigold", "transformers"]


@dataclass(frozen=True)
class ModelEntry:
    """A named model: hub `repo` (None: in the package), `licence` of its weights, `size_mb` to fetch, about."""

    repo: str | None
    family: Family
    domain: Domain
    licence: str
    size_mb: int
    note: str
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # defaults that the checkpoint's own files lack or get wrong


def _marigold(repo: str, licence: str, note: str, **options: Any) -> ModelEntry:
    return ModelEntry(repo, "marigold", "depth", licence, 5200, note, options)


def _disparity(repo: str, licence: str, size_mb: int, note: str) -> ModelEntry:
    return ModelEntry(repo, "transformers", "disparity", licence, size_mb, note)


def _metric(repo: str, licence: str, size_mb: int, note: str) -> ModelEntry:
    return ModelEntry(repo, "transformers", "metric", licence, size_mb, note)


_RAIL = "OpenRAIL++-M"
_NON_COMMERCIAL = "CC-BY-NC-4.0"

MODELS: Mapping[str, ModelEntry] = {
    "compact": ModelEntry(
        None, "compact", "log_depth", "Apache-2.0", 0, "in the package, no download, for any computer"
    ),
    "marigold": _marigold("prs-eth/marigold-depth-v1-1", _RAIL, "latent diffusion, 1 to 4 steps"),
    "marigold-lcm": _marigold("prs-eth/marigold-depth-lcm-v1-0", "Apache-2.0", "consistency-distilled, 1 to 4 steps"),
    # Its files say "leading", which spoils few-step sampling: arXiv 2409.11355, section 3.
    "marigold-v1-0": _marigold(
        "prs-eth/marigold-depth-v1-0", "Apache-2.0", "the first release", timestep_spacing="trailing"
    ),
    # Fine-tuned through the sampler on zero noise and one step, and meant for nothing else.
    "marigold-e2e": _marigold(
        "GonzaloMG/marigold-e2e-ft-depth",
        "Apache-2.0",
        "deterministic, one step",
        noise="zeros",
        steps=1,
        timestep_spacing="trailing",
    ),
    "depth-anything-v2-small": _disparity("depth-anything/Depth-Anything-V2-Small-hf", "Apache-2.0", 99, "fast"),
    "depth-anything-v2-base": _disparity("depth-anything/Depth-Anything-V2-Base-hf", _NON_COMMERCIAL, 390, "balanced"),
    "depth-anything-v2-large": _disparity("depth-anything/Depth-Anything-V2-Large-hf", _NON_COMMERCIAL, 1340, "sharp"),
    "depth-anything-v1-small": _disparity("LiheYoung/depth-anything-small-hf", "Apache-2.0", 99, "fast"),
    "depth-anything-v1-large": _disparity(
        "LiheYoung/depth-anything-large-hf", "Apache-2.0", 1340, "free of use limits"
    ),
    "dpt-large": _disparity("Intel/dpt-large", "Apache-2.0", 1370, "MiDaS 3.0"),
    "depth-anything-v2-indoor": _metric(
        "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf", "Apache-2.0", 99, "metres, indoors to 20 m"
    ),
    "depth-anything-v2-outdoor": _metric(
        "depth-anything/Depth-Anything-V2-Metric-Outdoor-Small-hf", "Apache-2.0", 99, "metres, outdoors to 80 m"
    ),
    "zoedepth": _metric("Intel/zoedepth-nyu-kitti", "MIT", 1380, "metres, indoors and streets"),
}
"""Every named model. Licences are those of the weights, as their authors state them; read them before you publish."""


def load_estimator(config: DepthConfig) -> DepthEstimator:
    """The estimator that `config.model` names: a registered name, else a local folder, else a hub name.

    A folder with model_index.json is a Marigold checkpoint, one with config.json a transformers network.
    Raises ModelError for unknown names and unusable weights, UsageError for settings the model cannot follow.
    """
    entry = MODELS.get(config.model)
    if entry is not None:
        return _registered(config, entry)
    return _unregistered(config)


def _registered(config: DepthConfig, entry: ModelEntry) -> DepthEstimator:
    if entry.repo is None:
        return _compact(config)
    known = {"name": config.model, "licence": entry.licence}
    if entry.family == "marigold":
        return _marigold_estimator(entry.repo, config, **known, **entry.options)
    return _transformers_estimator(entry.repo, config, domain=entry.domain, **known)


def _unregistered(config: DepthConfig) -> DepthEstimator:
    from .checkpoint import checkpoint_folder

    if "/" not in config.model and not Path(config.model).is_dir():
        raise ModelError(f"unknown model {config.model!r}: use {', '.join(MODELS)}, a folder, or a hub name OWNER/NAME")
    folder = checkpoint_folder(config.model, config.offline)
    here = replace(config, offline=True)  # whatever it is, it is on this computer now
    if (folder / "model_index.json").is_file():
        return _marigold_estimator(config.model, here)
    if (folder / "config.json").is_file():
        return _transformers_estimator(config.model, here)
    raise ModelError(
        f"{folder} is no checkpoint: it holds neither model_index.json (Marigold) nor config.json (transformers)"
    )


def _compact(config: DepthConfig) -> DepthEstimator:
    from .compact import CompactEstimator

    _refuse_sampling(config)
    return CompactEstimator(device=config.device, processing_resolution=config.processing_resolution or 0)


def _marigold_estimator(source: str, config: DepthConfig, **defaults: Any) -> DepthEstimator:
    from .marigold import MarigoldEstimator

    chosen = {
        "steps": config.steps,
        "ensemble": config.ensemble,
        "processing_resolution": config.processing_resolution,
        "seed": config.seed,
        "device": config.device,
        "dtype": config.dtype,
        "resample": config.resample,
        "compiled": config.compile,
        "tiny_vae": config.tiny_vae,
        "warm_start": config.warm_start,
        "sigma_every": config.sigma_every,
        "domain": config.domain,
        "offline": config.offline,
    }
    return MarigoldEstimator(source, **(defaults | {key: value for key, value in chosen.items() if value is not None}))


def _transformers_estimator(source: str, config: DepthConfig, **known: Any) -> DepthEstimator:
    from .transformers import TransformersEstimator

    _refuse_sampling(config)
    return TransformersEstimator(
        source,
        processing_resolution=config.processing_resolution,
        device=config.device,
        offline=config.offline,
        **known,
    )


def _refuse_sampling(config: DepthConfig) -> None:
    """Settings without effect are mistakes, not wishes."""
    if config.ensemble != 1 or config.steps is not None:
        raise UsageError(f"--steps and --ensemble are for Marigold checkpoints; {config.model} predicts in one pass")
