"""What is known of depth models without running them: those with a name, and checkpoints on this computer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .catalogue import MODELS, ModelEntry
from .checkpoint import checkpoint_family, checkpoint_folder, read_json, short_sha256, weight_files
from .hub import cached, excludes_commercial_use


def named_models() -> dict[str, dict[str, Any]]:
    """Every named model as a JSON-ready object: where from, domain, licence, size in MB, whether it is here already.

    Looks at the hub's cache, and nowhere else.
    """
    return {name: _named(entry) for name, entry in MODELS.items()}


def describe_model(model: str) -> dict[str, Any]:
    """A named model, or the checkpoint in a folder or in the hub's cache, as a JSON-ready object.

    Raises ModelError if there is no such model here, or if it is incomplete.
    """
    entry = MODELS.get(model)
    if entry is not None:
        known = {"name": model, **_named(entry)}
        folder = None if entry.repo is None else cached(entry.repo)
        if folder is None or known["cached"] != "yes":
            return known
        return known | _found(folder) | {"domain": entry.domain, "licence": entry.licence}
    if "/" not in model and not Path(model).exists():
        raise ModelError(f"unknown model {model!r}: use {', '.join(MODELS)}, a folder, or a hub name OWNER/NAME")
    return {"name": model, **_found(checkpoint_folder(model, offline=True))}


def _named(entry: ModelEntry) -> dict[str, Any]:
    return {
        **asdict(entry),
        "options": dict(entry.options),
        "commercial_use": not excludes_commercial_use(entry.licence),
        "cached": _cached(entry),
    }


def _cached(entry: ModelEntry) -> str:
    """yes, no, or "in part" where a download was interrupted."""
    if entry.repo is None:
        return "yes"
    folder = cached(entry.repo)
    if folder is None:
        return "no"
    try:
        _weights(folder)
    except ModelError:
        return "in part"
    return "yes"


def _weights(folder: Path) -> list[Path]:
    """The weight files of all parts of a checkpoint. Raises ModelError if one is missing or cut off."""
    if checkpoint_family(folder) == "transformers":
        return weight_files(folder)
    index = read_json(folder / "model_index.json")
    parts = [part for part in ("unet", "vae", "text_encoder") if part in index]
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise ModelError(f"{folder} is not a complete checkpoint: its folder {missing[0]}/ is missing, get it again")
    return [file for part in parts for file in weight_files(folder / part)]


def _found(folder: Path) -> dict[str, Any]:
    """What a checkpoint's own files say."""
    weights = _weights(folder)
    size = {"folder": str(folder), "size_mb": round(sum(file.stat().st_size for file in weights) / 1e6, 1)}
    if checkpoint_family(folder) == "transformers":
        return {"family": "transformers", **size, **_transformers(folder, weights)}
    return {"family": "marigold", **size, **_marigold(folder)}


def _transformers(folder: Path, weights: list[Path]) -> dict[str, Any]:
    from .network_types import network_domain

    config = read_json(folder / "config.json")
    try:
        domain: str = network_domain(folder)
    except ModelError as error:
        if "--domain" not in str(error):
            raise
        domain = "to be said with --domain"
    return {
        "class": (config.get("architectures") or [config.get("model_type")])[0],
        "domain": domain,
        "input": read_json(folder / "preprocessor_config.json").get("size", "the frame's own size"),
        "weights_sha256": short_sha256([folder / "config.json", *weights]),
    }


def _marigold(folder: Path) -> dict[str, Any]:
    from .marigold_model import weight_paths

    index = read_json(folder / "model_index.json")
    return {
        "class": index.get("_class_name"),
        "domain": index.get("prediction_type") or "depth",
        "scheduler": (index.get("scheduler") or [None, None])[1],
        "steps": index.get("default_denoising_steps"),
        "processing_resolution": index.get("default_processing_resolution"),
        "scale_invariant": index.get("scale_invariant", True),
        "shift_invariant": index.get("shift_invariant", True),
        "weights_sha256": short_sha256(weight_paths(folder)),
    }
