"""What is judged: any estimator of the registry, two baselines, and averages of several looks at a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marigold3d.config import DepthConfig
from marigold3d.depth.protocol import DepthEstimator
from marigold3d.errors import InputError, UsageError
from marigold3d.types import Array, Domain, FloatImage, RelativeDepth


class Constant:
    """Says nothing: the fit makes it the mean of the truth."""

    name = "constant"
    domain: Domain = "depth"

    def estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        return [RelativeDepth(np.ones(frame.shape[:2], np.float32), self.domain) for frame in rgb]

    def provenance(self) -> dict[str, str]:
        return {"name": self.name}


class Ramp:
    """Says only how far up a pixel is: the fit makes it a plane of depth over rows. Floors make it hard to beat."""

    name = "ramp"
    domain: Domain = "depth"

    def estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        return [RelativeDepth(_rows(frame.shape[0], frame.shape[1]), self.domain) for frame in rgb]

    def provenance(self) -> dict[str, str]:
        return {"name": self.name}


BASELINES: dict[str, type[Constant] | type[Ramp]] = {"constant": Constant, "ramp": Ramp}


@dataclass(frozen=True)
class Looks:
    """Test-time averaging: at each of `sizes` (longest side at the network, px; none: one look at the usual size), and
    with `flip` also mirrored left to right.
    """

    sizes: tuple[int, ...] = ()
    flip: bool = False


def open_estimator(
    config: DepthConfig, protocol_px: int | None = None, looks: Looks | None = None, weights: str | Path | None = None
) -> DepthEstimator:
    """The estimator or baseline that `config.model` names, averaged over `looks`.

    protocol_px: processing resolution of Marigold checkpoints where `config` gives none; other networks keep their own.
    weights: a safetensors file for the compact network, instead of the package's.
    Raises UsageError for settings that do not fit together, and what `load_estimator` raises.
    """
    looks = looks or Looks()
    if looks.sizes and config.processing_resolution is not None:
        raise UsageError("--sizes and --processing-resolution exclude each other: give the sizes alone")
    sizes = looks.sizes or (config.processing_resolution,)
    opened = [_open(replace(config, processing_resolution=px), protocol_px, weights) for px in sizes]
    if len(opened) == 1 and not looks.flip:
        return opened[0]
    return Averaged(opened, looks.flip)


def _open(config: DepthConfig, protocol_px: int | None, weights: str | Path | None) -> DepthEstimator:
    if weights is not None and config.model != "compact":
        raise UsageError(f"--weights is for --model compact, {config.model} has its own")
    if config.model in BASELINES:
        _refuse_settings(config)
        return BASELINES[config.model]()
    from marigold3d.depth import load_estimator

    if weights is not None:
        return _with_weights(config, weights)
    estimator = load_estimator(config)
    if protocol_px is not None and config.processing_resolution is None:
        _follow_protocol(estimator, protocol_px)
    return estimator


def _with_weights(config: DepthConfig, path: str | Path) -> DepthEstimator:
    """The compact estimator with the weights in a file. Raises InputError, ModelError for unusable ones."""
    from marigold3d.depth.compact import CompactEstimator

    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror}") from None
    return CompactEstimator(config.device, config.processing_resolution or 0, content)


def _follow_protocol(estimator: DepthEstimator, px: int) -> None:
    if estimator.provenance().get("family") != "marigold":
        return
    from marigold3d.depth.marigold import MarigoldEstimator

    if isinstance(estimator, MarigoldEstimator):
        estimator.processing_resolution = px


def _refuse_settings(config: DepthConfig) -> None:
    if config.ensemble != 1 or config.steps is not None or config.processing_resolution is not None:
        raise UsageError(f"--model {config.model} looks at no picture: it has no steps, ensemble or size")


class Averaged:
    """The mean of several looks, taken in the estimator's domain after bringing each to the first: by scale and shift
    (depth, disparity), by a shift (log depth), not at all (metric).
    """

    def __init__(self, estimators: Sequence[DepthEstimator], flip: bool) -> None:
        self._estimators, self._flip = list(estimators), flip
        self.name, self.domain = estimators[0].name, estimators[0].domain

    def estimate(self, rgb: NDArray[np.uint8]) -> list[RelativeDepth]:
        """rgb (N, H, W, 3) uint8 sRGB -> N maps (H, W), without uncertainty."""
        looks = [[relative.values for relative in e.estimate(rgb)] for e in self._estimators]
        if self._flip:
            mirrored = np.ascontiguousarray(rgb[:, :, ::-1])
            looks += [[relative.values[:, ::-1] for relative in e.estimate(mirrored)] for e in self._estimators]
        return [RelativeDepth(averaged(maps, self.domain), self.domain) for maps in zip(*looks, strict=True)]

    def provenance(self) -> dict[str, str]:
        """That of the first look, with the sizes of all."""
        sizes = ", ".join(e.provenance().get("processing_resolution", "") for e in self._estimators)
        first = self._estimators[0].provenance()
        return {**first, "processing_resolution": sizes, "flip": str(self._flip)}


def averaged(maps: Sequence[FloatImage], domain: Domain) -> FloatImage:
    """(H, W) mean of maps (H, W) of one picture, each brought to the first over the pixels that both have."""
    first = maps[0].astype(np.float64)
    total = first + sum(_brought(other.astype(np.float64), first, domain) for other in maps[1:])
    return (total / len(maps)).astype(np.float32)


def _brought(other: Array, first: Array, domain: Domain) -> Array:
    both = np.isfinite(other) & np.isfinite(first)
    if domain == "metric" or not both.any():
        return other
    v, y = other[both], first[both]
    centre, mean = v.mean(), y.mean()
    variance = np.mean((v - centre) ** 2)
    scale = np.mean((v - centre) * (y - mean)) / variance if domain != "log_depth" and variance > 0 else 1.0
    return scale * (other - centre) + mean


def _rows(height: int, width: int) -> FloatImage:
    return np.repeat(np.arange(height, dtype=np.float32)[:, None], width, axis=1)
