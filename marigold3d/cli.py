"""The command line. This module imports only typer and settings; every command loads the rest when it runs."""

from __future__ import annotations

import errno
import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .atomic import atomic_path, output_error, writable_folder
from .errors import InputError, Marigold3DError, OutputError, UsageError

EXIT_CODES = """Exit codes: 0 finished, 1 defect of marigold3d, 2 usage, 3 unusable input, 4 model missing or damaged,
5 out of memory, 6 the clip does not determine the geometry, 7 output exists or cannot be written,
130 interrupted (the same command resumes)."""

app = typer.Typer(
    name="marigold3d",
    help=f"Turn a video into a metric, consistent, explorable 3D scene.\n\n"
    f"marigold3d video clip.mp4 --fuse          a coloured point cloud in clip_3d/\n\n"
    f"marigold3d view clip_3d                   look at it\n\n"
    f"marigold3d depth photo.jpg -o out         depth of single images\n\n"
    f"marigold3d doctor                         what this machine lacks\n\n{EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130
PICTURES = (".png", ".pdf", ".svg")
CAMERA, POSES, METRES, ADVANCED = "Camera", "Poses", "Known depths and lengths", "Fine tuning"

Cues = typer.Option(
    "--cues",
    help="Known depths: a folder of depth maps NNNNNN.png (mm), .npy, .exr (m); FILE@FRAME; a CSV or NPZ of frame,u,v,"
    "depth or x,y,z or name,x,y,z,frame,u,v; a COLMAP or OpenSfM model. May be given several times.",
    rich_help_panel=METRES,
)
Measures = typer.Option(
    "--measure",
    help="A known length: x1,y1,x2,y2,FRAME=METRES, or x1,y1@FRAME1,x2,y2@FRAME2=METRES with its ends in two frames; "
    "pixels of the clip. May be given several times.",
    rich_help_panel=METRES,
)
Guide = typer.Option(
    "--guide", help="Steer a diffusion model by the known depths, on keyframes.", rich_help_panel=METRES
)


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class MaskScope(StrEnum):
    frame = "frame"
    pixels = "pixels"
    surface = "surface"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"marigold3d {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def video(
    clip: Annotated[str, typer.Argument(help="Video file, folder of images, or quoted pattern such as 'img*.png'.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Run folder. Default: CLIP_3d here.")] = None,
    fuse: Annotated[bool, typer.Option("--fuse/--no-fuse", help="Fuse all frames into one cloud.")] = True,
    model: Annotated[
        str, typer.Option(help="Depth model: a name from `marigold3d models`, a folder, or a hub name.")
    ] = "compact",
    device: Annotated[Device, typer.Option(help="Where the network runs.")] = Device.auto,
    start: Annotated[float, typer.Option(help="First moment used, s.")] = 0.0,
    end: Annotated[float | None, typer.Option(help="Last moment used, s.")] = None,
    stride: Annotated[int, typer.Option(help="Use every n-th frame.")] = 1,
    fps: Annotated[float | None, typer.Option(help="Resample to about this rate.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Stop after so many frames.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar.")] = False,
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
        typer.Option(help="Camera-to-world poses: TUM, COLMAP folder, transforms.json, .npy.", rich_help_panel=POSES),
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
    cues: Annotated[list[str] | None, Cues] = None,
    measure: Annotated[list[str] | None, Measures] = None,
    guide: Annotated[bool, Guide] = False,
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
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", rich_help_panel=ADVANCED)] = None,
    ensemble: Annotated[int, typer.Option(help="Predictions merged a frame.", rich_help_panel=ADVANCED)] = 1,
    processing_resolution: Annotated[
        int | None, typer.Option(help="Longest side at the network's input, px.", rich_help_panel=ADVANCED)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial noise.", rich_help_panel=ADVANCED)] = 2024,
    offline: Annotated[
        bool, typer.Option("--offline", help="Never contact the model hub.", rich_help_panel=ADVANCED)
    ] = False,
) -> None:
    """Turn a clip into aligned depth, a camera path and a coloured point cloud."""
    from . import config as c

    if sum((poses is not None, static, no_poses)) > 1:
        raise UsageError("--poses, --static and --no-poses exclude each other: give one")
    if metric_poses and poses is None:
        raise UsageError("--metric-poses says what the units of --poses FILE are: give the file too")
    numbers, file = _intrinsics(intrinsics)
    settings = c.RunConfig(
        fuse=fuse and not no_poses,
        video=c.VideoConfig(start, end, stride, fps, max_frames, max_side),
        depth=c.DepthConfig(model, device.value, steps, ensemble, seed, processing_resolution, offline=offline),
        camera=c.CameraConfig(fov, focal_px, focal_35mm, numbers, file),
        poses=c.PoseConfig(
            "none" if no_poses else "static" if static else "file" if poses else "sfm",
            poses,
            metric_poses,
            allow_cuts=allow_cuts,
        ),
        align=c.AlignConfig(cues=tuple(cues or ()), measures=tuple(measure or ()), guide=guide),
        refine=c.RefineConfig(enabled=refine, poses=refine_poses),
        fusion=c.FusionConfig(voxel, max_depth, consistency_ratio=consistency, min_observations=min_observations),
    )
    from .pipeline import reconstruct
    from .terminal import progress_bars, report_lines

    folder = output or Path(f"{_stem(clip)}_3d")
    with progress_bars(quiet) as on_progress:
        run = reconstruct(clip, folder, settings, overwrite=overwrite, on_progress=on_progress)
    if as_json:
        _print_json({"run": str(folder), "units": run.manifest["units"], **run.manifest["report"]})
    else:
        print(report_lines(run), file=sys.stderr)


@app.command()
def depth(
    images: Annotated[list[Path], typer.Argument(help="Images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for STEM_depth.npy and STEM_depth.png.")],
    model: Annotated[str, typer.Option(help="Depth model.")] = "compact",
    device: Annotated[Device, typer.Option(help="Where the network runs.")] = Device.auto,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    ensemble: Annotated[int, typer.Option(help="Predictions merged an image.")] = 1,
    processing_resolution: Annotated[int | None, typer.Option(help="Longest side at the network's input, px.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial noise.")] = 2024,
    offline: Annotated[bool, typer.Option("--offline", help="Never contact the model hub.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as one JSON object.")] = False,
) -> None:
    """Relative depth of single images: near small, far large."""
    from .config import DepthConfig
    from .single import estimate_images
    from .terminal import progress_bars

    settings = DepthConfig(model, device.value, steps, ensemble, seed, processing_resolution, offline=offline)
    with progress_bars() as on_progress:
        written = estimate_images(images, output, settings, overwrite=overwrite, on_progress=on_progress)
    if as_json:
        _print_json({"written": [str(p) for p in written], "near": "small", "far": "large"})


@app.command()
def align(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    cues: Annotated[list[str] | None, Cues] = None,
    cue_sigma: Annotated[
        float | None, typer.Option(help="Standard deviation of the cues, share of depth.", rich_help_panel=METRES)
    ] = None,
    metric_cues: Annotated[
        bool, typer.Option("--metric-cues", help="A foreign model's units are metres.", rich_help_panel=METRES)
    ] = False,
    measure: Annotated[list[str] | None, Measures] = None,
    guide: Annotated[bool, Guide] = False,
    field: Annotated[bool, typer.Option("--field/--no-field", help="Bend each frame by a smooth field.")] = True,
    plot: Annotated[Path | None, typer.Option(help="Picture of the alignment: PNG, PDF or SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar.")] = False,
) -> None:
    """Align a finished run anew, to known depths and lengths, without estimating depth again; or draw its report.

    Cues given before stay unless others are given. Lengths are added to those given before; one between the same ends
    replaces it. Lengths alone take a second. With only --plot or --json the run stays as it is.
    """
    from .config import AlignConfig
    from .cues import parse_measure
    from .rescale import known_lengths, rescale
    from .store import Run
    from .terminal import alignment_table, progress_bars

    opened, said = Run.open(run), ""
    if plot is not None:
        _check_plot(plot)
    lengths = [parse_measure(text) for text in measure or ()]
    if lengths and not (cues or guide or not field):
        said = "\n".join(rescale(opened, lengths).lines)
    elif cues or measure or guide or not field or (plot is None and not as_json):
        from .realign import realign

        units = "m" if metric_cues else None
        before = opened.manifest["settings"].get("align", {})
        settings = AlignConfig(
            field=field,
            cues=tuple(cues or before.get("cues", ())),
            cue_sigma=cue_sigma if cues else before.get("cue_sigma"),
            cue_units=units if cues else before.get("cue_units"),  # type: ignore[arg-type]
            measures=tuple(map(str, known_lengths(opened, lengths))),
            guide=guide,
        )
        with progress_bars(quiet) as on_progress:
            opened = realign(opened, settings, on_progress=on_progress)
    if plot is not None:
        from .align.plot import plot_alignment

        with atomic_path(plot) as temporary:
            plot_alignment(opened.alignment(), temporary)
    if as_json:
        _print_json({"run": str(run), "units": opened.manifest["units"], **opened.manifest["report"]})
    else:
        print(said or alignment_table(opened), file=sys.stderr)


@app.command()
def fuse(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    voxel: Annotated[float | None, typer.Option(help="Voxel size, scene units.")] = None,
    max_depth: Annotated[float | None, typer.Option(help="Drop what is farther, scene units.")] = None,
    consistency: Annotated[
        float | None, typer.Option(help="Relative depth difference at which views still agree.")
    ] = None,
    min_observations: Annotated[int | None, typer.Option(help="Frames that must have seen a point.")] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Leave out what is not zero in FOLDER/NNNNNN.png, by source frame, any size."),
    ] = None,
    mask_scope: Annotated[
        MaskScope,
        typer.Option(help="What a mask means: its frame's pixels, the same pixels of all frames, or what they show."),
    ] = MaskScope.frame,
    undo: Annotated[bool, typer.Option("--undo", help="Take the last masks back.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar.")] = False,
) -> None:
    """Fuse a finished run's depth maps again: with other settings, or without what masks exclude.

    Settings and masks given before stay; depth is not touched.
    """
    from dataclasses import replace

    from .edits import Exclusion, exclude, fusion_settings, read_masks, refuse
    from .edits import undo as take_back
    from .progress import run as drive
    from .store import Run
    from .terminal import progress_bars, report_lines

    options = {
        "voxel": voxel,
        "max_depth": max_depth,
        "consistency_ratio": consistency,
        "min_observations": min_observations,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if undo and (given or masks is not None):
        raise UsageError("--undo takes the last masks back and goes with no other setting: give it alone")
    if masks is None and mask_scope is not MaskScope.frame:
        raise UsageError("--mask-scope says what masks mean: give --masks FOLDER too")
    opened = Run.open(run)
    config = replace(fusion_settings(opened), **given) if given else None  # type: ignore[arg-type]
    if undo:
        steps = take_back(opened)
    elif masks is not None:
        steps = exclude(opened, Exclusion(read_masks(masks, opened), mask_scope.value), config)
    else:
        steps = refuse(opened, config)
    with progress_bars(quiet) as on_progress:
        opened = drive(steps, on_progress)
    if as_json:
        edits = opened.manifest.get("edits", [])
        _print_json({"run": str(run), "units": opened.manifest["units"], "edits": edits, **opened.manifest["report"]})
    else:
        print(report_lines(opened), file=sys.stderr)


@app.command()
def view(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    screenshot: Annotated[Path | None, typer.Option(help="Write a picture instead; needs no display.")] = None,
    from_frame: Annotated[int | None, typer.Option(help="Look from where this source frame was taken.")] = None,
    width: Annotated[int, typer.Option(help="Picture width, px.")] = 1280,
    height: Annotated[int, typer.Option(help="Picture height, px.")] = 960,
) -> None:
    """Open a run's cloud and camera path in Open3D's viewer, or draw it."""
    from . import view as viewer
    from .store import Run

    opened = Run.open(run)
    if screenshot is None:
        viewer.show(opened)
    else:
        viewer.screenshot(opened, screenshot, width=width, height=height, from_frame=from_frame)


@app.command()
def info(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest as JSON.")] = False,
) -> None:
    """What a run holds and how good it is."""
    from .store import Run
    from .terminal import report_lines

    opened = Run.open(run)
    if as_json:
        _print_json(opened.manifest)
    else:
        print(report_lines(opened))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    form: Annotated[str, typer.Option("--format", help="ply, glb, las, laz, colmap, nerfstudio, npy, exr or npz.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File, or folder for formats of many files.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a run in another format; the run itself is never changed."""
    from .export_run import export_run
    from .store import Run

    export_run(Run.open(run), form, output, overwrite=overwrite)


@app.command()
def batch(
    clips: Annotated[list[str], typer.Argument(help="Clips, each into its own run folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the run folders.")],
    workers: Annotated[int, typer.Option(help="Clips at the same time, through Ray (marigold3d[scale]).")] = 1,
    model: Annotated[str, typer.Option(help="Depth model.")] = "compact",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace finished runs.")] = False,
) -> None:
    """Reconstruct many clips; one that fails does not stop the others."""
    from .batch import reconstruct_all
    from .config import DepthConfig, RunConfig

    jobs = {clip: output / f"{_stem(clip)}_3d" for clip in clips}
    failures = reconstruct_all(jobs, RunConfig(depth=DepthConfig(model)), workers=workers, overwrite=overwrite)
    for clip, error in failures.items():
        print(f"marigold3d: {clip}: {error}", file=sys.stderr)
    if failures:
        raise typer.Exit(next(iter(failures.values())).exit_code)


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """Depth models by name, with their licences."""
    from dataclasses import asdict

    from .depth import MODELS

    if as_json:
        _print_json({name: {**asdict(m), "options": dict(m.options)} for name, m in MODELS.items()})
        return
    for name, m in MODELS.items():
        print(f"{name:28s}{m.domain:12s}{m.licence:16s}{m.size_mb:6d} MB  {m.note}")


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """What works on this machine, and the line that installs what does not."""
    from . import doctor as checks

    found = checks.run_checks()
    if as_json:
        _print_json(checks.as_json(found))
    else:
        print(checks.format_report(found))
    raise typer.Exit(checks.exit_code(found))


@app.command()
def gui(path: Annotated[str | None, typer.Argument(help="Clip or run folder to open.")] = None) -> None:
    """Open napari with the marigold3d panel."""
    from importlib import import_module
    from importlib.util import find_spec

    if find_spec("napari") is None:
        raise InputError("napari is not installed: pip install 'marigold3d[napari]' 'PySide6_Essentials!=6.12.0'")
    import_module(f"{__package__}.napari_plugin").launch(path)


def _check_plot(file: Path) -> None:
    """Whether a picture can be written there, before the work that it shows."""
    if file.suffix.lower() not in PICTURES:
        raise UsageError(f"--plot {file}: choose a name that ends in {', '.join(PICTURES)}")
    writable_folder(file.parent)


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


def _stem(clip: str) -> str:
    """A name for the run of a clip, a folder or a pattern."""
    path = Path(os.path.abspath(clip))  # so that "." and ".." have names
    if path.is_dir():
        return path.name
    return path.parent.name if any(c in path.name for c in "*?[") and not path.exists() else path.stem


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, default=str))


def main() -> NoReturn:
    """Entry point: known errors are one line and their exit code, an interrupt is 130, all else keeps its traceback."""
    try:
        code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer has caught the interrupt and returns its code
            raise KeyboardInterrupt
        sys.exit(code)
    except typer.TyperException as error:
        print(f"marigold3d: {error.format_message()} (marigold3d --help lists what there is)", file=sys.stderr)
        sys.exit(error.exit_code)
    except Marigold3DError as error:
        print(f"marigold3d: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MemoryError:
        print("marigold3d: out of memory: use --max-side 480, --max-frames or a larger --voxel", file=sys.stderr)
        sys.exit(5)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        print(f"marigold3d: {output_error(error.filename or 'the output', error)}", file=sys.stderr)
        sys.exit(OutputError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # zarr's half-done writes: atomic, and made anew
        print("marigold3d: interrupted; finished frames are kept, the same command resumes", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
