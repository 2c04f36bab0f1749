"""One evaluation from its options: open, judge, report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marigold3d.atomic import atomic_path
from marigold3d.config import DepthConfig
from marigold3d.depth.protocol import DepthEstimator
from marigold3d.errors import InputError, UsageError
from marigold3d.progress import run
from marigold3d.terminal import progress_bars
from training.evaluation.datasets import DataSet, KittiMask
from training.evaluation.estimators import Looks, open_estimator
from training.evaluation.frames import Frames
from training.evaluation.journal import Journal
from training.evaluation.judging import Judged, chosen, judge
from training.evaluation.protocol import fit_space
from training.evaluation.report import Report, summarise
from training.evaluation.tables import image_table, whole


@dataclass(frozen=True)
class Request:
    """The options of the command; `python -m training.evaluate --help` says what they mean."""

    dataset: str
    root: str
    split: str | None = None
    kitti_mask: KittiMask = "eigen"
    limit: int | None = None
    model: str = "compact"
    weights: str | None = None
    steps: int | None = None
    ensemble: int = 1
    processing_resolution: int | None = None
    seed: int = 1234
    device: str = "auto"
    offline: bool = False
    flip: bool = False
    sizes: Sequence[int] = ()
    json: Path | None = None
    work: Path | None = None
    pictures: Path | None = None
    per_image: bool = False
    quiet: bool = False


def evaluate(request: Request) -> str:
    """Judge, write what was asked for, and return the tables. Raises a Marigold3DError that says what is wrong."""
    dataset = _dataset(request)
    estimator = _estimator(request, dataset)
    indices = chosen(len(dataset), request.limit)
    journal = Journal(_journal_path(request), _settings(request, dataset, estimator, indices))
    with progress_bars(request.quiet) as on_progress:
        skipped = run(judge(estimator, dataset, indices, journal, request.pictures), on_progress)
    rows = [journal.rows[dataset.names[i]] for i in indices if dataset.names[i] in journal.rows]
    report = summarise(rows, skipped, _described(dataset, estimator, journal), request.seed)
    if request.json is not None:
        with atomic_path(request.json) as temporary:
            temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return "\n\n".join((whole(report), *((image_table(rows),) if request.per_image else ())))


def read_report(path: Path) -> Report:
    """A report that `--json` wrote. Raises InputError if it cannot be read, or is of no published data set."""
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))
        published = report["published_images"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no report: write one with --json") from None
    if not published:
        raise InputError(f"{path} is of {report['dataset']}, of which nothing is published: leave it out")
    return report


def _dataset(request: Request) -> Judged:
    if request.dataset != "frames":
        return DataSet(request.dataset, request.root, request.split, request.kitti_mask)
    if request.split is not None:
        raise UsageError("--split does not go with --dataset frames, which has no list")
    return Frames(request.root)


def _estimator(request: Request, dataset: Judged) -> DepthEstimator:
    config = DepthConfig(
        model=request.model,
        device=request.device,
        steps=request.steps,
        ensemble=request.ensemble,
        seed=request.seed,
        processing_resolution=request.processing_resolution,
        offline=request.offline,
    )
    looks = Looks(tuple(request.sizes), request.flip)
    return open_estimator(config, dataset.protocol.processing_resolution, looks, request.weights)


def _journal_path(request: Request) -> Path | None:
    if request.work is not None:
        return request.work / "images.jsonl"
    return None if request.json is None else request.json.with_suffix(".images.jsonl")


def _settings(
    request: Request, dataset: Judged, estimator: DepthEstimator, indices: Sequence[int]
) -> dict[str, str | dict[str, str]]:
    """What the figures depend on."""
    names = "\n".join(dataset.names[i] for i in indices)
    mask = {"kitti_mask": request.kitti_mask} if request.dataset == "kitti" else {}
    return {
        "dataset": request.dataset,
        **mask,
        "list_sha256": hashlib.sha256(names.encode()).hexdigest()[:16],
        "model": dict(estimator.provenance()),
    }


def _described(dataset: Judged, estimator: DepthEstimator, journal: Journal) -> dict[str, Any]:
    return {
        **journal.settings,
        "title": dataset.protocol.title,
        "published_images": dataset.protocol.images,
        "fit": fit_space(estimator.domain),
        "device": str(getattr(estimator, "device", "cpu")),
    }
