"""Depth of single images: a float map and a picture beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .atomic import atomic_path, writable_folder
from .config import DepthConfig, VideoConfig
from .depth import load_estimator
from .errors import InputError, OutputError
from .export.preview import colorize
from .progress import Progress
from .types import FloatImage, RelativeDepth
from .video import open_video


def estimate_images(
    images: Sequence[Path],
    folder: Path,
    config: DepthConfig,
    *,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> list[Path]:
    """Write STEM_depth.npy ((H, W) float32, near small, far large) and STEM_depth.png for every image; their paths.

    Raises InputError for unreadable images and stems that clash, OutputError when files exist already.
    """
    targets = [(folder / f"{i.stem}_depth.npy", folder / f"{i.stem}_depth.png") for i in images]
    if len({t[0] for t in targets}) < len(targets):
        raise InputError("two of the images have the same name: their depth maps would overwrite each other")
    existing = next((p for pair in targets for p in pair if p.exists()), None)
    if existing is not None and not overwrite:
        raise OutputError(f"{existing} exists already: pass --overwrite or choose another folder")
    for image in images:
        if not image.is_file():
            raise InputError(f"{image}: no such image")
    estimator = load_estimator(config)
    writable_folder(folder)
    for done, (image, (array, picture)) in enumerate(zip(images, targets, strict=True)):
        frame = next(iter(open_video(image, VideoConfig()).frames()))
        far = far_large(estimator.estimate(frame.rgb[None])[0])
        _write(array, picture, far)
        on_progress(Progress("depth", done + 1, len(images)))
    return [path for pair in targets for path in pair]


def far_large(relative: RelativeDepth) -> FloatImage:
    """Relative values (H, W) that grow with distance, whatever the domain: disparity turned round, log depth raised."""
    v = relative.values
    if relative.domain == "disparity":
        return (np.nanmax(v) - v).astype(np.float32)
    if relative.domain == "log_depth":
        return np.exp(v - np.nanmedian(v)).astype(np.float32)
    return v


def _write(array: Path, picture: Path, far: FloatImage) -> None:
    from PIL import Image

    with atomic_path(array) as temporary, temporary.open("wb") as file:
        np.save(file, far)
    valid = np.isfinite(far)
    order = np.empty(far.size, np.float32)  # by rank, so that neither sky nor a near object takes all the colours
    order[np.argsort(far, axis=None)] = np.linspace(0.05, 1, far.size)
    with atomic_path(picture) as temporary:
        Image.fromarray(colorize(order.reshape(far.shape), valid, (0.05, 1.0))).save(temporary)
