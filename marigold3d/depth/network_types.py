"""What the depth networks of transformers predict, by model type.

Every type of AutoModelForDepthEstimation is either in one of the two tables here or refused by name until somebody
has read what its numbers mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from ..errors import ModelError, UsageError
from ..types import Domain
from .checkpoint import read_json

DOMAINS: Mapping[str, Domain] = {
    "depth_anything": "disparity",  # unless its configuration says metric
    "depth_pro": "metric",  # canonical 1/z, made metres by the field of view it predicts
    "dpt": "disparity",  # MiDaS; but see _domain_of_type
    "glpn": "metric",
    "tipsv2_dpt": "metric",
    "zoedepth": "metric",
}

REFUSED: Mapping[str, str] = {
    "chmv2": "predicts the height of trees in pictures from above, not depth",
    "prompt_depth_anything": "needs measured depth with every frame: use a depth_anything network, and --cues",
}


def network_domain(folder: Path, given: str | None = None) -> Domain:
    """What the network in `folder` predicts: `given` where the caller knows better, else what its type is known for.

    Raises ModelError for networks of other kinds, UsageError for a domain that is none or that the network has not.
    """
    if given is not None and given not in get_args(Domain):
        raise UsageError(f"unknown domain {given!r}: use one of {', '.join(get_args(Domain))}")
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind in REFUSED:
        raise ModelError(f"{folder} is of type {kind!r}, which {REFUSED[kind]}")
    if kind not in _loadable():
        known = ", ".join(DOMAINS)
        raise ModelError(f"{folder} is of type {kind!r}, no depth network that transformers can load: use {known}")
    if kind not in DOMAINS and given is None:
        raise ModelError(f"{folder} is of type {kind!r}, whose numbers are unknown here: say --domain")
    if given is None:
        return _domain_of_type(folder, config)
    if kind == "depth_pro" and given not in (_domain_of_type(folder, config), "disparity"):
        raise UsageError(f"{folder} predicts metres where it knows the field of view, else disparity, not {given}")
    return given  # type: ignore[return-value]


def _domain_of_type(folder: Path, config: Mapping[str, Any]) -> Domain:
    kind, backbone = str(config["model_type"]), config.get("backbone_config") or {}
    if config.get("depth_estimation_type") == "metric":
        return "metric"
    if kind == "dpt" and backbone.get("model_type") == "dinov2":
        raise ModelError(
            f"{folder} is a DPT on DINOv2, which predicts metric (DINOv2's own heads) or disparity (Depth Anything's "
            "first uploads): say which with --domain"
        )
    if kind == "depth_pro" and not config.get("use_fov_model", False):
        return "disparity"
    return DOMAINS[kind]


def _loadable() -> set[str]:
    """Model types of AutoModelForDepthEstimation in the transformers that is installed."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES

    return set(MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES)
