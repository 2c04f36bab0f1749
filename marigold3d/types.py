"""Value types, and every convention of marigold3d, stated once.

Frames and axes
    camera: x right, y down, z forward (OpenCV). World: whatever frame the poses are given in.
    Poses are `T_world_camera`: x_world = T_world_camera @ x_camera.
Depth
    z-depth, along the camera's z axis; never ray length.
Pixels
    Continuous coordinates (u, v) = (column, row); the centre of the top-left pixel is (0.5, 0.5).
Units
    A scene has `units`: "m" only when a metric cue set its scale, else "arbitrary".
Arrays
    numpy; images are (H, W, ...), depth float32, poses float64.

Every type is frozen and checked on construction; methods return new values.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

Domain = Literal["depth", "disparity", "log_depth", "metric"]
"""What a network's numbers are: affine-invariant z-depth, affine-invariant 1/z, affine-invariant log z, or z itself."""

Units = Literal["m", "arbitrary"]

FloatImage = NDArray[np.float32]
BoolImage = NDArray[np.bool_]
Array = NDArray[np.floating[Any]]
"""Numbers in float64 unless said otherwise; float32 is accepted."""


def _require(condition: bool | np.bool_, message: str) -> None:
    if not condition:
        raise InputError(message)


def _require_vectors(owner: object, n: int, *names: str) -> None:
    """Whether these fields are (n, 3)."""
    for name in names:
        shape = getattr(owner, name).shape
        _require(shape == (n, 3), f"{name} must be ({n}, 3), got {shape}")


@dataclass(frozen=True, eq=False)
class Intrinsics:
    """Pinhole camera in pixels, with optional OpenCV distortion (k1, k2, p1, p2).

    fx, fy: focal lengths; cx, cy: principal point in continuous pixel coordinates; width, height: image size.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    distortion: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.distortion is not None:  # a list, as JSON gives it, could be changed and not be hashed
            object.__setattr__(self, "distortion", tuple(self.distortion))
        numbers = (self.fx, self.fy, self.cx, self.cy, *(self.distortion or ()))
        _require(all(np.isfinite(n) for n in numbers), f"camera intrinsics must be finite numbers, got {numbers}")
        _require(self.fx > 0 and self.fy > 0, f"focal lengths must be positive, got fx={self.fx}, fy={self.fy}")
        _require(self.width > 0 and self.height > 0, f"image size must be positive, got {self.width}x{self.height}")
        _require(
            -self.width < self.cx < 2 * self.width and -self.height < self.cy < 2 * self.height,
            f"principal point ({self.cx}, {self.cy}) is far outside the {self.width}x{self.height} image",
        )

    @classmethod
    def from_fov(cls, fov_x_deg: float, width: int, height: int) -> Intrinsics:
        """Centred pinhole from the horizontal field of view in degrees."""
        _require(0 < fov_x_deg < 170, f"the field of view must lie between 0 and 170 degrees, got {fov_x_deg}")
        return cls.from_focal(0.5 * width / np.tan(np.radians(fov_x_deg) / 2), width, height)

    @classmethod
    def from_focal(cls, f_px: float, width: int, height: int) -> Intrinsics:
        """Centred pinhole with square pixels from the focal length in pixels."""
        return cls(float(f_px), float(f_px), width / 2, height / 2, width, height)

    @classmethod
    def from_focal_35mm(cls, f_mm: float, width: int, height: int) -> Intrinsics:
        """Centred pinhole from a 35 mm equivalent focal length (CIPA: the diagonal of 36 x 24 mm is 43.27 mm)."""
        return cls.from_focal(f_mm * np.hypot(width, height) / np.hypot(36.0, 24.0), width, height)

    @property
    def K(self) -> Array:
        """(3, 3) camera matrix."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    @property
    def fov_x_deg(self) -> float:
        """Horizontal field of view of a centred camera of this focal length, degrees."""
        return float(np.degrees(2 * np.arctan(0.5 * self.width / self.fx)))

    def scaled_to(self, width: int, height: int) -> Intrinsics:
        """The same camera after the image is resized to width x height (pixel centres at +0.5 make this exact)."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy, width=width, height=height
        )

    def cropped(self, left: int, top: int, width: int, height: int) -> Intrinsics:
        """The same camera after cropping width x height pixels starting at (left, top)."""
        return replace(self, cx=self.cx - left, cy=self.cy - top, width=width, height=height)

    def undistorted(self) -> Intrinsics:
        """The same pinhole without distortion."""
        return replace(self, distortion=None)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready description, as written to camera.json."""
        names = ("fx", "fy", "cx", "cy", "width", "height")
        return {
            "model": "OPENCV" if self.distortion else "PINHOLE",
            **{name: getattr(self, name) for name in names},
            "distortion": list(self.distortion) if self.distortion else None,
            "pixel_centre": 0.5,
            "axes": "x right, y down, z forward",
        }


@dataclass(frozen=True, eq=False)
class Frame:
    """One video frame: `index` in the source, `timestamp_s` from its start, `rgb` (H, W, 3) uint8 sRGB, upright."""

    index: int
    timestamp_s: float
    rgb: NDArray[np.uint8]

    def __post_init__(self) -> None:
        _require(
            self.rgb.ndim == 3 and self.rgb.shape[2] == 3 and self.rgb.dtype == np.uint8,
            f"a frame must be (H, W, 3) uint8, got {self.rgb.shape} {self.rgb.dtype}",
        )


@dataclass(frozen=True, eq=False)
class RelativeDepth:
    """A network's raw output: `values` (H, W) float32 in `domain`; `uncertainty` (H, W), one sigma in the same units.

    "disparity" grows towards the camera, the other domains away from it. NaN marks pixels without an estimate.
    """

    values: FloatImage
    domain: Domain
    uncertainty: FloatImage | None = None

    def __post_init__(self) -> None:
        _require(
            self.domain in get_args(Domain), f"unknown depth domain {self.domain!r}: use one of {get_args(Domain)}"
        )
        _require(self.values.ndim == 2, f"relative depth must be (H, W), got {self.values.shape}")
        _require(self.values.dtype == np.float32, f"relative depth must be float32, got {self.values.dtype}")
        _require(
            self.uncertainty is None or self.uncertainty.shape == self.values.shape,
            "the uncertainty must have the shape of the depth",
        )


UNSTATED_SIGMA = 0.05  # relative standard deviation of depth maps that come without one


@dataclass(frozen=True, eq=False)
class DepthMap:
    """Aligned depth: z in scene units (H, W) float32, `valid` (H, W) bool, `sigma` (H, W) float32 in scene units."""

    depth: FloatImage
    valid: BoolImage
    sigma: FloatImage | None = None

    def __post_init__(self) -> None:
        _require(self.depth.ndim == 2 and self.depth.dtype == np.float32, "a depth map must be (H, W) float32")
        _require(self.valid.shape == self.depth.shape and self.valid.dtype == np.bool_, "`valid` must be (H, W) bool")
        _require(self.sigma is None or self.sigma.shape == self.depth.shape, "`sigma` must have the shape of the depth")
        depth = self.depth[self.valid]
        _require(bool(np.all(np.isfinite(depth) & (depth > 0))), "valid depth must be finite and positive")

    @property
    def sigma_or_typical(self) -> FloatImage:
        """(H, W): sigma, or a typical share of the depth where the map has none."""
        return UNSTATED_SIGMA * self.depth if self.sigma is None else self.sigma

    def scaled(self, factor: float) -> DepthMap:
        """The same surfaces in units `factor` times finer."""
        f = np.float32(factor)
        return DepthMap(self.depth * f, self.valid, None if self.sigma is None else self.sigma * f)

    def restricted_to(self, mask: BoolImage) -> DepthMap:
        """The same depth, valid only where `mask` (H, W) is too."""
        return replace(self, valid=self.valid & mask)


@dataclass(frozen=True, eq=False)
class SparseCues:
    """Known depths of a frame: `uv` (N, 2) pixels, `depth` (N,) z in scene units, `sigma` (N,) in scene units."""

    uv: Array
    depth: Array
    sigma: Array | None = None
    source: str = "unknown"

    def __post_init__(self) -> None:
        n = len(self.depth)
        _require(
            self.uv.shape == (n, 2) and self.depth.shape == (n,),
            f"cues need uv (N, 2) and depth (N,), got {self.uv.shape} and {self.depth.shape}",
        )
        _require(self.sigma is None or self.sigma.shape == (n,), "cue sigma must be (N,)")
        _require(np.all(np.isfinite(self.uv)) and np.all(np.isfinite(self.depth)), "cues must be finite; drop NaN rows")
        _require(np.all(self.depth > 0), "cue depths must be positive z-depths; drop points behind the camera")
        _require(self.sigma is None or np.all(self.sigma > 0), "cue sigmas must be positive")

    def __len__(self) -> int:
        return len(self.depth)

    def select(self, keep: NDArray[Any]) -> SparseCues:
        """The cues picked by a boolean mask or an index array."""
        return replace(
            self, uv=self.uv[keep], depth=self.depth[keep], sigma=None if self.sigma is None else self.sigma[keep]
        )

    @classmethod
    def empty(cls, source: str = "none") -> SparseCues:
        return cls(np.zeros((0, 2)), np.zeros(0), np.zeros(0), source)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Camera path: `timestamps_s` (N,), increasing; `T_world_camera` (N, 4, 4) float64, rigid."""

    timestamps_s: Array
    T_world_camera: Array

    def __post_init__(self) -> None:
        n = len(self.timestamps_s)
        _require(self.T_world_camera.shape == (n, 4, 4), f"poses must be (N, 4, 4), got {self.T_world_camera.shape}")
        _require(np.all(np.isfinite(self.T_world_camera)), "camera poses must be finite")
        _require(bool(np.all(np.diff(self.timestamps_s) > 0)), "pose timestamps must increase")
        R = self.T_world_camera[:, :3, :3]
        error = float(np.abs(R @ np.swapaxes(R, 1, 2) - np.eye(3)).max()) if n else 0.0
        _require(
            error < 1e-3, f"camera rotations are not orthonormal (off by {error:.3g}): are these scaled or transposed?"
        )
        _require(bool(np.all(np.linalg.det(R) > 0)), "camera rotations must be right-handed (determinant +1)")

    def __len__(self) -> int:
        return len(self.timestamps_s)

    @property
    def centres(self) -> Array:
        """(N, 3) camera centres in the world."""
        return self.T_world_camera[:, :3, 3]

    def scaled(self, factor: float) -> Trajectory:
        """The same path in units `factor` times finer."""
        T = self.T_world_camera.copy()
        T[:, :3, 3] *= factor
        return replace(self, T_world_camera=T)


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Coloured, oriented world points with their evidence.

    points (N, 3) float32; colors (N, 3) uint8; normals (N, 3) float32, unit, towards the cameras; sigma (N,) float32,
    scene units; observations (N,) int32, frames that saw the point; frame_index (N,) int32, source frame that saw it
    best.
    """

    points: NDArray[np.float32]
    colors: NDArray[np.uint8]
    normals: NDArray[np.float32]
    sigma: NDArray[np.float32]
    observations: NDArray[np.int32]
    frame_index: NDArray[np.int32]
    units: Units = field(default="arbitrary")

    def __post_init__(self) -> None:
        n = len(self.points)
        _require_vectors(self, n, "points", "colors", "normals")
        for name in ("sigma", "observations", "frame_index"):
            _require(getattr(self, name).shape == (n,), f"{name} must be ({n},), got {getattr(self, name).shape}")

    def __len__(self) -> int:
        return len(self.points)

    def select(self, keep: NDArray[Any]) -> PointCloud:
        """The points picked by a boolean mask or an index array."""
        names = ("points", "colors", "normals", "sigma", "observations", "frame_index")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})


@dataclass(frozen=True, eq=False)
class TriangleMesh:
    """A coloured surface in the world.

    vertices (V, 3) float32; faces (F, 3) int32, counter-clockwise seen from outside, which is where the cameras were;
    normals (V, 3) float32, unit, outwards; colors (V, 3) uint8.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    normals: NDArray[np.float32]
    colors: NDArray[np.uint8]
    units: Units = field(default="arbitrary")

    def __post_init__(self) -> None:
        n = len(self.vertices)
        _require_vectors(self, n, "vertices", "normals", "colors")
        _require(self.faces.ndim == 2 and self.faces.shape[1] == 3, f"faces must be (F, 3), got {self.faces.shape}")
        _require(
            not self.faces.size or (self.faces.min() >= 0 and self.faces.max() < n),
            "faces name vertices beyond the last",
        )

    def __len__(self) -> int:
        return len(self.faces)

    def select(self, keep: NDArray[Any]) -> TriangleMesh:
        """The triangles picked by a boolean mask or an index array, with the vertices that they use."""
        faces = self.faces[keep]
        used, renumbered = np.unique(faces, return_inverse=True)
        return replace(
            self,
            vertices=self.vertices[used],
            faces=renumbered.reshape(-1, 3).astype(np.int32),
            normals=self.normals[used],
            colors=self.colors[used],
        )
