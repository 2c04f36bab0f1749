"""`marigold3d depth`: images and clips become files of relative depth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    CLIPS,
    Batch,
    Compile,
    Device,
    Dtype,
    End,
    Ensemble,
    Fps,
    MaxFrames,
    Meaning,
    Model,
    Offline,
    On,
    ProcessingResolution,
    Quiet,
    Resample,
    Seed,
    SigmaEvery,
    Start,
    Steps,
    Stride,
    TinyVae,
    WarmStart,
    print_json,
)


def depth(
    inputs: Annotated[
        list[str], typer.Argument(help="Images, folders of images, quoted patterns and clips, in any mixture.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for STEM_depth.* and, of clips, STEM/.")],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="npy, npz, png16, exr, preview, video; several with commas. Default: npy,preview for images, "
            "npz,video for clips.",
        ),
    ] = None,
    colormap: Annotated[
        str,
        typer.Option(help="Colours, near first: Spectral, viridis, magma, inferno, plasma, turbo, gray; or NAME_r."),
    ] = "Spectral",
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty/--no-uncertainty", help="Write the model's uncertainty beside its depth.")
    ] = True,
    model: Model = "compact",
    device: On = Device.auto,
    max_side: Annotated[
        int | None,
        typer.Option(
            help="Longest side of the depth maps, px; 0: as the input. Default: 1280 for clips, 0 for images."
        ),
    ] = None,
    sequence: Annotated[
        bool,
        typer.Option("--sequence", help="Take a folder or a pattern as the frames of a clip.", rich_help_panel=CLIPS),
    ] = False,
    start: Start = 0.0,
    end: End = None,
    stride: Stride = 1,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as one JSON object.")] = False,
    quiet: Quiet = False,
    steps: Steps = None,
    ensemble: Ensemble = 1,
    processing_resolution: ProcessingResolution = None,
    seed: Seed = 2024,
    offline: Offline = False,
    domain: Meaning = None,
    dtype: Dtype = "auto",
    resample: Resample = "bilinear",
    compiled: Compile = False,
    tiny_vae: TinyVae = None,
    warm_start: WarmStart = False,
    sigma_every: SigmaEvery = 1,
    batch: Batch = None,
) -> None:
    """Relative depth of images and clips, as the model gives it.

    Beside the files stands a JSON that says what the numbers mean, and which way they run. The same command goes on
    where it was interrupted; inputs that cannot be read are told at the end and do not stop the others.
    """
    from .. import config as c
    from ..depth_files import OutputConfig, estimate_files
    from ..progress import run as drive
    from ..terminal import progress_bars

    names = tuple(name.strip() for text in formats or () for name in text.split(",") if name.strip())
    wanted = OutputConfig(names, colormap, max_side, uncertainty, sequence)
    clip = c.VideoConfig(start, end, stride, fps, max_frames)
    settings = c.DepthConfig(
        model=model,
        device=device.value,
        steps=steps,
        ensemble=ensemble,
        seed=seed,
        processing_resolution=processing_resolution,
        batch=batch,
        offline=offline,
        domain=domain,
        dtype=dtype,
        resample=resample,  # type: ignore[arg-type]
        compile=compiled,
        tiny_vae=tiny_vae,
        warm_start=warm_start,
        sigma_every=sigma_every,
    )
    with progress_bars(quiet) as on_progress:
        report = drive(estimate_files(inputs, output, settings, clip, wanted, overwrite=overwrite), on_progress)
    for line in report.warnings:
        print(f"marigold3d: {line}", file=sys.stderr)
    for error in report.failures.values():
        print(f"marigold3d: {error}", file=sys.stderr)
    if as_json:
        print_json(report.as_dict())
    if report.failures:
        raise typer.Exit(next(iter(report.failures.values())).exit_code)
