"""From a model's name, folder or hub name to its estimator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import DepthConfig
from ..errors import ModelError, UsageError
from .catalogue import MODELS as MODELS
from .catalogue import ModelEntry as ModelEntry
from .protocol import DepthEstimator


def load_estimator(config: DepthConfig) -> DepthEstimator:
    """The estimator that `config.model` names: a registered name, else a local folder, else a hub name.

    A folder with model_index.json is a Marigold checkpoint, one with config.json a transformers network. What is
    missing of it is downloaded, unless `config.offline`; a line on stderr says so beforehand.
    Raises ModelError for unknown names and unusable weights, UsageError for settings the model cannot follow.
    """
    entry = MODELS.get(config.model)
    if entry is not None:
        return _registered(config, entry)
    return _unregistered(config)


def _registered(config: DepthConfig, entry: ModelEntry) -> DepthEstimator:
    if config.domain not in (None, entry.domain):
        raise UsageError(f"{config.model} predicts {entry.domain}: leave --domain {config.domain} out")
    if entry.repo is None:
        return _compact(config)
    if entry.family == "transformers":
        _refuse_sampling(config)  # before a download, not after
    here = _fetched(entry.repo, config, entry.licence)
    known = {"name": config.model, "licence": entry.licence}
    if entry.family == "marigold":
        return _marigold_estimator(entry.repo, here, **known, **entry.options)
    return _transformers_estimator(entry.repo, replace(here, domain=entry.domain), **known)


def _unregistered(config: DepthConfig) -> DepthEstimator:
    from .checkpoint import checkpoint_family, checkpoint_folder

    if "/" not in config.model and not Path(config.model).exists():
        raise ModelError(f"unknown model {config.model!r}: use {', '.join(MODELS)}, a folder, or a hub name OWNER/NAME")
    folder = checkpoint_folder(config.model, config.offline)
    here = replace(config, offline=True)  # whatever it is, it is on this computer now
    if checkpoint_family(folder) == "marigold":
        return _marigold_estimator(config.model, here)
    return _transformers_estimator(config.model, here)


def _fetched(repo: str, config: DepthConfig, licence: str) -> DepthConfig:
    """The same settings, offline, once the checkpoint is on this computer."""
    from .checkpoint import checkpoint_folder

    checkpoint_folder(repo, config.offline, licence)
    return replace(config, offline=True)


def _compact(config: DepthConfig) -> DepthEstimator:
    from .compact import CompactEstimator

    _refuse_sampling(config)
    if config.compile or config.dtype not in ("auto", "float32"):
        raise UsageError("compact runs in float32 as it is: leave --compile and --dtype out")
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
        domain=config.domain,  # type: ignore[arg-type]
        processing_resolution=config.processing_resolution,
        device=config.device,
        dtype=config.dtype,
        compiled=config.compile,
        offline=config.offline,
        **known,
    )


def _refuse_sampling(config: DepthConfig) -> None:
    """Settings without effect are mistakes, not wishes."""
    usual = DepthConfig()
    options = ("steps", "ensemble", "resample", "tiny_vae", "warm_start", "sigma_every")
    given = [f"--{name.replace('_', '-')}" for name in options if getattr(config, name) != getattr(usual, name)]
    if given:
        raise UsageError(
            f"{', '.join(given)}: for Marigold checkpoints only; {config.model} predicts in one pass, leave it out"
        )
