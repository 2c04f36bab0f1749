"""Options that several commands share, and how commands print."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

CLIPS, CAMERA, POSES, METRES, ADVANCED = "Clips", "Camera", "Poses", "Known depths and lengths", "Fine tuning"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


RunFolder = Annotated[Path, typer.Argument(help="Run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar.")]

Mesh = Annotated[bool, typer.Option("--mesh", help="A triangle mesh too, mesh.ply.")]
Triangles = Annotated[int | None, typer.Option(help="Simplify the mesh to about so many triangles.")]

Cues = Annotated[
    list[str] | None,
    typer.Option(
        "--cues",
        help="Known depths: a folder of depth maps NNNNNN.png (mm), .npy, .exr (m); FILE@FRAME; a CSV or NPZ of "
        "frame,u,v,depth or x,y,z or name,x,y,z,frame,u,v; a COLMAP or OpenSfM model. May be given several times.",
        rich_help_panel=METRES,
    ),
]
Measures = Annotated[
    list[str] | None,
    typer.Option(
        "--measure",
        help="A known length: x1,y1,x2,y2,FRAME=METRES, or x1,y1@FRAME1,x2,y2@FRAME2=METRES with its ends in two "
        "frames; pixels of the clip. May be given several times.",
        rich_help_panel=METRES,
    ),
]
Guide = Annotated[
    bool,
    typer.Option("--guide", help="Steer a diffusion model by the known depths, on keyframes.", rich_help_panel=METRES),
]

Start = Annotated[float, typer.Option(help="First moment used, s.")]
End = Annotated[float | None, typer.Option(help="Last moment used, s.")]
Stride = Annotated[int, typer.Option(help="Use every n-th frame.")]
Fps = Annotated[float | None, typer.Option(help="Resample to about this rate.")]
MaxFrames = Annotated[int | None, typer.Option(help="Stop after so many frames.")]

Model = Annotated[str, typer.Option(help="Depth model: a name from `marigold3d models`, a folder, or a hub name.")]
On = Annotated[Device, typer.Option("--device", help="Where the network runs.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.", rich_help_panel=ADVANCED)]
Ensemble = Annotated[int, typer.Option(help="Predictions merged a frame.", rich_help_panel=ADVANCED)]
ProcessingResolution = Annotated[
    int | None, typer.Option(help="Longest side at the network's input, px.", rich_help_panel=ADVANCED)
]
Seed = Annotated[int, typer.Option(help="Seed of the initial noise.", rich_help_panel=ADVANCED)]
Offline = Annotated[bool, typer.Option("--offline", help="Never contact the model hub.", rich_help_panel=ADVANCED)]
Meaning = Annotated[
    str | None,
    typer.Option(
        "--domain",
        help="What an unknown network's numbers mean: depth, disparity, log_depth or metric.",
        rich_help_panel=ADVANCED,
    ),
]
Dtype = Annotated[str, typer.Option(help="Precision: auto, float32, float16 or bfloat16.", rich_help_panel=ADVANCED)]
Resample = Annotated[
    str,
    typer.Option(
        help="How frames are brought to the network's size: bilinear, bicubic or nearest.", rich_help_panel=ADVANCED
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the networks: minutes to start, then faster.", rich_help_panel=ADVANCED),
]
TinyVae = Annotated[
    str | None,
    typer.Option(help="Small autoencoder (AutoencoderTiny) for a diffusion model's decoder.", rich_help_panel=ADVANCED),
]
WarmStart = Annotated[
    bool,
    typer.Option(
        "--warm-start", help="Diffusion begins each frame of a clip from the one before.", rich_help_panel=ADVANCED
    ),
]
SigmaEvery = Annotated[
    int, typer.Option(help="With --ensemble: every n-th frame of a clip gets one.", rich_help_panel=ADVANCED)
]
Batch = Annotated[
    int | None, typer.Option(help="Frames estimated together. Default: what fits.", rich_help_panel=ADVANCED)
]


def stem_of(clip: str) -> str:
    """A name for what is made of a clip, a folder or a pattern."""
    path = Path(os.path.abspath(clip))  # so that "." and ".." have names
    if path.is_dir():
        return path.name
    return path.parent.name if any(c in path.name for c in "*?[") and not path.exists() else path.stem


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, default=str))
