"""Depth models by name: where their weights come from, what they predict, and under which licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..types import Domain

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
    "depth-pro": _metric("apple/DepthPro-hf", "apple-amlr", 3810, "metres and fine edges, research only"),
    "zoedepth": _metric("Intel/zoedepth-nyu-kitti", "MIT", 1380, "metres, indoors and streets"),
}
"""Every named model. Licences are those of the weights, as their authors state them; read them before you publish."""
