"""`marigold3d video`: a clip becomes a scene."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .options import (
    ADVANCED,
    CAMERA,
    POSES,
    Batch,
    Compile,
    Cues,
    Device,
    Dtype,
    End,
    Ensemble,
    Fps,
    Guide,
    Json,
    MaxFrames,
    Meaning,
    Measures,
    Mesh,
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
    Triangles,
    WarmStart,
    print_json,
    stem_of,
)


def video(
    clip: Annotated[str, typer.Argument(help="Video file, folder of images, or quoted pattern such as 'img*.png'.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Run folder. Default: CLIP_3d here.")] = None,
    fuse: Annotated[bool, typer.Option("--fuse/--no-fuse", help="Fuse all frames into one cloud.")] = True,
    mesh: Mesh = False,
    triangles: Triangles = None,
    model: Model = "compact",
    device: On = Device.auto,
    start: Start = 0.0,
    end: End = None,
    stride: Stride = 1,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished run.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    fov: Annotated[
        float | None, typer.Option(help="Horizontal field of view, degrees.", rich_help_panel=CAMERA)
    ] = None,
    focal_px: Annotated[
        float | None, typer.Option(help="Focal length, px of the clip.", rich_help_panel=CAMERA)
    ] = None,
    focal_35mm: Annotated[
        float | None, typer.Option(help="35 mm equivalent focal length.", rich_help_panel=CAMERA)
    ] = None,
    intrinsics: Annotated[
        str | None,
        typer.Option(
            help="fx,fy,cx,cy in px of the clip, or a file: 3x3 matrix, camera.json, cameras.txt.",
            rich_help_panel=CAMERA,
        ),
    ] = None,
    poses: Annotated[
        Path | None,
        typer.Option(
            help="Camera poses: TUM, COLMAP folder, transforms.json, OpenSfM, Record3D, Polycam, .npy; or `odometry`: "
            "from colour and depth, where texture is too poor for structure from motion.",
            rich_help_panel=POSES,
        ),
    ] = None,
    poses_convention: Annotated[
        str | None,
        typer.Option(
            help="What the file's poses are, if not what its format says: opengl or opencv, world-to-camera or "
            "camera-to-world, wxyz or xyzw, comma-separated.",
            rich_help_panel=POSES,
        ),
    ] = None,
    metric_poses: Annotated[
        bool, typer.Option("--metric-poses", help="The poses' translations are metres.", rich_help_panel=POSES)
    ] = False,
    static: Annotated[bool, typer.Option("--static", help="The camera stood still.", rich_help_panel=POSES)] = False,
    no_poses: Annotated[
        bool,
        typer.Option("--no-poses", help="Consistent depth by optical flow alone; no cloud.", rich_help_panel=POSES),
    ] = False,
    allow_cuts: Annotated[
        bool, typer.Option("--allow-cuts", help="Take a clip with scene cuts as one scene.", rich_help_panel=POSES)
    ] = False,
    cues: Cues = None,
    measure: Measures = None,
    guide: Guide = False,
    refine: Annotated[
        bool, typer.Option("--refine/--no-refine", help="Sharpen depth by matching views.", rich_help_panel=ADVANCED)
    ] = True,
    refine_poses: Annotated[
        bool,
        typer.Option(
            "--refine-poses",
            help="Adjust poses and focal length to the pictures, if it pays.",
            rich_help_panel=ADVANCED,
        ),
    ] = False,
    voxel: Annotated[float | None, typer.Option(help="Voxel size, scene units.", rich_help_panel=ADVANCED)] = None,
    max_depth: Annotated[
        float | None, typer.Option(help="Drop what is farther, scene units.", rich_help_panel=ADVANCED)
    ] = None,
    consistency: Annotated[
        float, typer.Option(help="Relative depth difference at which views still agree.", rich_help_panel=ADVANCED)
    ] = 0.03,
    min_observations: Annotated[
        int, typer.Option(help="Frames that must have seen a point.", rich_help_panel=ADVANCED)
    ] = 2,
    max_side: Annotated[int, typer.Option(help="Longest side of depth maps, px.", rich_help_panel=ADVANCED)] = 640,
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
    """Turn a clip into aligned depth, a camera path and a coloured point cloud."""
    from .. import config as c

    if sum((poses is not None, static, no_poses)) > 1:
        raise UsageError("--poses, --static and --no-poses exclude each other: give one")
    if mesh and (no_poses or not fuse):
        raise UsageError("--mesh needs the camera path and --fuse: leave --no-poses and --no-fuse out")
    if triangles is not None and not mesh:
        raise UsageError("--triangles says how large the mesh may be: give --mesh too")
    walked = poses == Path("odometry")
    if metric_poses and (poses is None or walked):
        raise UsageError("--metric-poses says what the units of --poses FILE are: give the file too")
    if poses_convention is not None and (poses is None or walked):
        raise UsageError("--poses-convention says how --poses FILE is to be read: give the file too")
    numbers, file = _intrinsics(intrinsics)
    settings = c.RunConfig(
        fuse=fuse and not no_poses,
        video=c.VideoConfig(start, end, stride, fps, max_frames, max_side),
        depth=c.DepthConfig(
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
        ),
        camera=c.CameraConfig(fov, focal_px, focal_35mm, numbers, file),
        poses=c.PoseConfig(
            "none" if no_poses else "static" if static else "odometry" if walked else "file" if poses else "sfm",
            None if walked else poses,
            metric_poses,
            allow_cuts=allow_cuts,
            convention=tuple(word.strip() for word in (poses_convention or "").split(",") if word.strip()),
        ),
        align=c.AlignConfig(cues=tuple(cues or ()), measures=tuple(measure or ()), guide=guide),
        refine=c.RefineConfig(enabled=refine, poses=refine_poses),
        fusion=c.FusionConfig(voxel, max_depth, consistency_ratio=consistency, min_observations=min_observations),
    )
    from ..meshing import mesh_run
    from ..pipeline import reconstruct
    from ..progress import run as drive
    from ..terminal import progress_bars, report_lines

    folder = output or Path(f"{stem_of(clip)}_3d")
    with progress_bars(quiet) as on_progress:
        run = reconstruct(clip, folder, settings, overwrite=overwrite, on_progress=on_progress)
        if mesh:
            try:
                run = drive(mesh_run(run, triangles), on_progress)
            except BaseException:
                print(f"the scene is whole, its mesh is not: marigold3d fuse {folder} --mesh makes it", file=sys.stderr)
                raise
    if as_json:
        print_json({"run": str(folder), "units": run.manifest["units"], **run.manifest["report"]})
    else:
        print(report_lines(run), file=sys.stderr)


def _intrinsics(text: str | None) -> tuple[tuple[float, float, float, float] | None, Path | None]:
    """`--intrinsics`: four numbers, or the file that holds them."""
    if text is None:
        return None, None
    parts = text.split(",")
    if len(parts) == 1:
        return None, Path(text)
    try:
        fx, fy, cx, cy = (float(p) for p in parts)
    except ValueError:
        raise UsageError(f"--intrinsics takes fx,fy,cx,cy in pixels or a file, got {text!r}") from None
    return (fx, fy, cx, cy), None
