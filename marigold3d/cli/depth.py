"""`marigold3d depth`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Ensemble, Model, Offline, On, ProcessingResolution, Seed, Steps, print_json


def depth(
    images: Annotated[list[Path], typer.Argument(help="Images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for STEM_depth.npy and STEM_depth.png.")],
    model: Model = "compact",
    device: On = Device.auto,
    steps: Steps = None,
    ensemble: Ensemble = 1,
    processing_resolution: ProcessingResolution = None,
    seed: Seed = 2024,
    offline: Offline = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as one JSON object.")] = False,
) -> None:
    """Relative depth of single images: near small, far large."""
    from ..config import DepthConfig
    from ..single import estimate_images
    from ..terminal import progress_bars

    settings = DepthConfig(model, device.value, steps, ensemble, seed, processing_resolution, offline=offline)
    with progress_bars() as on_progress:
        written = estimate_images(images, output, settings, overwrite=overwrite, on_progress=on_progress)
    if as_json:
        print_json({"written": [str(p) for p in written], "near": "small", "far": "large"})
