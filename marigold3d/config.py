"""Every setting of a run, a frozen dataclass a stage: the CLI's options, the panel's widgets and run.json are these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import UsageError

Resample = Literal["bilinear", "bicubic", "nearest"]


def _positive(**settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and not value > 0:
            raise UsageError(f"{name} must be positive, got {value}")


def _at_least(least: int, **settings: int) -> None:
    for name, value in settings.items():
        if not value >= least:
            raise UsageError(f"{name} must be at least {least}, got {value}")


def _one_of(known: Sequence[str], **settings: str) -> None:
    for name, value in settings.items():
        if value not in known:
            raise UsageError(f"{name} must be one of {', '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class VideoConfig:
    """Which frames of the clip are used, and at which size."""

    start_s: float = 0.0  # first moment used
    end_s: float | None = None  # last moment used; None: to the end
    stride: int = 1  # every n-th frame
    fps: float | None = None  # resample to about this rate (overrides stride)
    max_frames: int | None = None  # stop after so many frames
    max_side: int = 640  # longest side of depth maps, px; larger frames are reduced
    lens: str | None = None  # MODEL WIDTH HEIGHT PARAMS as in cameras.txt: frames are undistorted from it when read

    def __post_init__(self) -> None:
        _at_least(32, max_side=self.max_side)


@dataclass(frozen=True)
class DepthConfig:
    """Which estimator, and how it samples."""

    model: str = "compact"  # registry name, local folder or hub name
    device: str = "auto"  # auto, cpu, cuda, mps
    steps: int | None = None  # denoising steps; None: the checkpoint's default
    ensemble: int = 1  # predictions merged per frame (diffusion models)
    seed: int = 2024  # of the initial noise
    processing_resolution: int | None = None  # longest side at the network's input, px; None: the checkpoint's default
    batch: int | None = None  # frames estimated together; None: what fits in memory
    offline: bool = False  # never contact the model hub
    domain: str | None = None  # what a Hugging Face network's numbers mean; None: known from its type
    dtype: str = "auto"  # auto, float32, float16, bfloat16
    resample: Resample = "bilinear"  # how frames are brought to the network's size: bilinear, bicubic, nearest
    compile: bool = False  # torch.compile the networks: minutes to start, faster afterwards
    tiny_vae: str | None = None  # an AutoencoderTiny (folder or hub name) in place of the checkpoint's own decoder
    warm_start: bool = False  # begin each frame from its predecessor's depth (diffusion models)
    sigma_every: int = 1  # with an ensemble: every n-th frame gets one, the frames between a single prediction

    def __post_init__(self) -> None:
        _at_least(1, ensemble=self.ensemble, sigma_every=self.sigma_every)
        _at_least(0, processing_resolution=self.processing_resolution or 0)
        _positive(steps=self.steps, batch=self.batch)
        _one_of(get_args(Resample), resample=self.resample)
        _one_of(("auto", "float32", "float16", "bfloat16"), dtype=self.dtype)


@dataclass(frozen=True)
class CameraConfig:
    """What is known of the camera: at most one of these."""

    fov_deg: float | None = None  # horizontal field of view, degrees
    focal_px: float | None = None  # at the clip's own (upright) resolution
    focal_35mm: float | None = None  # 35 mm equivalent, mm
    intrinsics: tuple[float, float, float, float] | None = None  # fx, fy, cx, cy at the clip's own resolution, px
    file: Path | None = None  # 3x3 matrix, camera.json or COLMAP cameras


@dataclass(frozen=True)
class PoseConfig:
    """Where camera poses come from."""

    source: Literal["sfm", "file", "static", "none", "odometry"] = "sfm"
    file: Path | None = None  # TUM, COLMAP, transforms.json, OpenSfM, Record3D, Polycam or .npy
    metric: bool = False  # the file's translations are metres
    keyframe_fps: float = 15.0  # SfM keyframes a second, at the most
    max_keyframes: int = 400  # for longer clips the keyframes are spread out
    allow_cuts: bool = False  # treat a clip with scene cuts as one scene
    convention: tuple[str, ...] = ()  # of the file, where not its format's: opengl, wxyz ...


@dataclass(frozen=True)
class AlignConfig:
    """From relative to scene-unit depth."""

    field: bool = True  # bend each frame by a low-frequency log-scale field
    held_out: float = 0.2  # share of the cues kept back to measure the error
    cues: tuple[str, ...] = ()  # files of known depths: depth maps, tables, clouds, control points, SfM models
    cue_sigma: float | None = None  # standard deviation of those cues, share of depth; None: by kind of file
    cue_units: Literal["m", "arbitrary"] | None = None  # of those cues; None: by kind of file
    measures: tuple[str, ...] = ()  # known lengths, "x1,y1,x2,y2,frame=METRES" or "x1,y1@f1,x2,y2@f2=METRES"
    guide: bool = False  # steer a diffusion model by the cues, on keyframes
    guided_frames: int = 12  # so many of them, at the most


@dataclass(frozen=True)
class RefineConfig:
    """Multi-view refinement of the aligned depth."""

    enabled: bool = True
    neighbours: int = 6  # views matched against each frame
    max_side: int = 320  # longest side at which views are matched, px
    poses: bool = False  # adjust poses and focal length to the pictures, if that makes held-out matches fit better

    def __post_init__(self) -> None:
        _at_least(1, neighbours=self.neighbours)
        _at_least(64, max_side=self.max_side)


@dataclass(frozen=True)
class FusionConfig:
    """From depth maps to one cloud."""

    voxel: float | None = None  # scene units; None: from the median depth
    max_depth: float | None = None  # drop what is farther, scene units; None: six times the median depth
    edge_ratio: float = 0.02  # relative depth step between neighbouring pixels that marks a flying pixel
    consistency_ratio: float = 0.03  # relative disagreement with other views that still counts as agreement
    max_sigma: float = 0.05  # drop pixels more uncertain than this share of their depth, and than twice the typical one
    min_observations: int = 2  # frames that must have seen a voxel

    def __post_init__(self) -> None:
        _positive(voxel=self.voxel, max_depth=self.max_depth)
        _positive(edge_ratio=self.edge_ratio, consistency_ratio=self.consistency_ratio, max_sigma=self.max_sigma)
        _at_least(1, min_observations=self.min_observations)
        if self.consistency_ratio >= 1:
            raise UsageError(f"consistency_ratio is a share of the depth, below 1, got {self.consistency_ratio}")


@dataclass(frozen=True)
class RunConfig:
    """A whole run. `fuse` False stops after aligned depth."""

    fuse: bool = True
    video: VideoConfig = field(default_factory=VideoConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    poses: PoseConfig = field(default_factory=PoseConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready settings."""
        return json.loads(json.dumps(asdict(self), default=str))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> RunConfig:
        """The settings that `as_dict` wrote; entries of other versions that are unknown here are left out."""
        stages = {f.name: f.default_factory for f in fields(cls) if f.default_factory is not MISSING}
        parts = {name: _restored(type(make()), settings.get(name, {})) for name, make in stages.items()}
        return cls(fuse=bool(settings.get("fuse", True)), **parts)

    def digest(self) -> str:
        """Short hash of the settings: an interrupted run resumes only under the same one."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]


def _restored(stage: type[Any], entries: Mapping[str, Any]) -> Any:
    """A stage's settings from JSON, which knows neither paths nor tuples."""
    known = {f.name: str(f.type) for f in fields(stage)}
    values = {name: value for name, value in entries.items() if name in known}
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
        elif isinstance(value, str) and "Path" in known[name]:
            values[name] = Path(value)
    return stage(**values)
