"""Judges an estimator and the baselines on every image of a data set."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from marigold3d.depth.protocol import DepthEstimator
from marigold3d.errors import InputError
from marigold3d.pipeline import peak_memory_mb
from marigold3d.progress import Progress, Steps
from marigold3d.types import Array
from training.data.samples import CorruptSample, Sample
from training.evaluation import pictures
from training.evaluation.edges import edge_metrics
from training.evaluation.estimators import Constant, Ramp
from training.evaluation.journal import Journal, Row
from training.evaluation.metrics import depth_metrics
from training.evaluation.protocol import Protocol as EvaluationProtocol
from training.evaluation.protocol import aligned

MOST_CORRUPT = 0.01  # share of the images
LEAST_VALID = 2  # pixels that a scale and a shift need
METHODS = ("model", "constant", "ramp")


class Judged(Protocol):
    """A data set: samples, the name of each and of the set it belongs to, and how they are judged."""

    name: str
    protocol: EvaluationProtocol
    names: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def chosen(count: int, limit: int | None) -> list[int]:
    """Indices of `limit` images, spread evenly over `count`; all of them where there is no limit."""
    if limit is None or limit >= count:
        return list(range(count))
    return np.linspace(0, count - 1, limit).round().astype(int).tolist()


def judge(
    estimator: DepthEstimator,
    dataset: Judged,
    indices: Sequence[int],
    journal: Journal,
    picture_folder: Path | None = None,
) -> Steps[list[str]]:
    """Judge those images that `journal` does not have; returns what was skipped, and why.

    A damaged sample is skipped; InputError above MOST_CORRUPT of `indices`. With `picture_folder`, each image's picture
    goes there, and an image without one is judged again.
    """
    baselines: dict[str, DepthEstimator] = {"constant": Constant(), "ramp": Ramp()}
    skipped: list[str] = []
    for done, index in enumerate(indices, 1):
        name = dataset.names[index]
        picture = None if picture_folder is None else pictures.path(picture_folder, name)
        if name not in journal.rows or (picture is not None and not picture.exists()):
            try:
                sample = readable(dataset, index)
            except CorruptSample as error:
                skipped.append(f"{name}: {error}" if name not in str(error) else str(error))
                _check_share(skipped, len(indices))
            else:
                row, depth_m = judge_image(estimator, baselines, sample, dataset.protocol)
                if picture is not None:
                    pictures.write(picture, sample, depth_m, row["model"])
                journal.add({"name": name, "group": dataset.groups[index], **row})
        yield Progress(f"Judging {estimator.name}", done, len(indices))
    return skipped


def readable(dataset: Judged, index: int) -> Sample:
    """A sample with truth. Raises CorruptSample where it is damaged or has none."""
    sample = dataset[index]
    if int(sample.valid.sum()) < LEAST_VALID:
        raise CorruptSample(f"{dataset.names[index]}: no pixel has a depth that counts")
    return sample


def judge_image(
    estimator: DepthEstimator, baselines: Mapping[str, DepthEstimator], sample: Sample, protocol: EvaluationProtocol
) -> tuple[Row, Array]:
    """Figures of the model and the baselines, seconds and peak memory; and the model's depth (H, W) in metres."""
    depth_m, seconds = metres(estimator, sample, protocol)
    memory_mb = peak_mb(estimator)

    def figures(name: str) -> dict[str, float]:
        depth = depth_m if name == "model" else metres(baselines[name], sample, protocol)[0]
        return figures_of(depth, sample)

    with ThreadPoolExecutor() as pool:  # seconds each on 24 Mpx, of numpy that leaves the other cores free
        found = dict(zip(METHODS, pool.map(figures, METHODS), strict=True))
    return {**found, "seconds": seconds, "peak_memory_mb": memory_mb}, depth_m


def metres(estimator: DepthEstimator, sample: Sample, protocol: EvaluationProtocol) -> tuple[Array, float]:
    """(H, W) metres of an estimator's depth after the protocol's fit, and the seconds that the estimate took."""
    rgb = picture_of(sample)
    began = time.perf_counter()
    relative = estimator.estimate(rgb[None])[0]  # on the CPU when it returns
    seconds = time.perf_counter() - began
    truth_m, valid = truth_of(sample)
    if relative.values.shape != truth_m.shape:
        raise InputError(f"{estimator.name} returns {relative.values.shape} for a picture of {truth_m.shape}")
    return aligned(relative, truth_m, valid, protocol), seconds


def figures_of(depth_m: Array, sample: Sample) -> dict[str, float]:
    """Every figure of metrics.FIGURES, of depth_m (H, W)."""
    truth_m, valid = truth_of(sample)
    return {**depth_metrics(depth_m, truth_m, valid), **edge_metrics(depth_m, truth_m, valid)}


def picture_of(sample: Sample) -> NDArray[np.uint8]:
    """(H, W, 3) uint8."""
    return np.ascontiguousarray(sample.rgb.permute(1, 2, 0).cpu().numpy())


def truth_of(sample: Sample) -> tuple[Array, NDArray[np.bool_]]:
    """(H, W) float32 metres and (H, W) bool."""
    return sample.depth_m[0].cpu().numpy(), sample.valid[0].cpu().numpy()


def peak_mb(estimator: DepthEstimator) -> float:
    """Most memory so far, MB: of the GPU that the estimator is on, else of this process."""
    device = getattr(estimator, "device", None)
    if isinstance(device, torch.device) and device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device) / 2**20)
    return peak_memory_mb()


def _check_share(skipped: list[str], total: int) -> None:
    if len(skipped) > MOST_CORRUPT * total:
        raise InputError(
            f"{len(skipped)} of {total} images cannot be judged, more than {MOST_CORRUPT:.0%}; the last: {skipped[-1]}"
        )
