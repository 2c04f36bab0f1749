"""What a person keeps out of a run's cloud: masks over its depth maps, kept beside the run and heeded by every fusion.

    RUN/edits/NNN.npz    an edit's masks, a bit a pixel
    RUN/run.json         "edits": [{"file", "scope", "frames", "pixels", "digest", "clip"}], in the order they were made

Depth maps stay as they are, so that every edit can be taken back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .atomic import atomic_path
from .camera import ray_grid
from .errors import InputError, UsageError
from .fusion.fuse import FusionInput
from .multiview.consistency import View, pixels_under
from .rigid import inverse
from .store import Run
from .types import BoolImage, DepthMap, Intrinsics

Scope = Literal["frame", "pixels", "surface"]
"""What a mask means: "frame": these pixels of this frame. "pixels": the same pixels of every frame, such as a bonnet or
a logo. "surface": what these pixels show, in every frame, such as sky or a table."""

SAME_SURFACE = 0.05  # of its depth: a point so near a painted one lies on the same surface ...
SIGMAS = 2.0  # ... or within so many standard deviations of it ...
FARTHEST = 0.15  # ... but no farther away than this share, however uncertain depth is there
MAPS_KEPT = 16  # in memory: a view is read again as the neighbour of those around it


@dataclass(frozen=True, eq=False)
class Exclusion:
    """Pixels to leave out: `masks` by source frame, each (H, W) bool of the depth maps' size, True is left out.

    Raises UsageError for masks of several sizes, of another type, or with nothing painted on them.
    """

    masks: Mapping[int, BoolImage]
    scope: Scope = "frame"

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise UsageError(f"unknown scope {self.scope!r} of a mask: use one of {', '.join(get_args(Scope))}")
        if any(m.ndim != 2 or m.dtype != np.bool_ for m in self.masks.values()):
            raise UsageError("masks must be (H, W) bool, of the depth maps' size")
        if len({m.shape for m in self.masks.values()}) > 1:
            raise UsageError(f"masks differ in size: {sorted({m.shape for m in self.masks.values()})}")
        painted = {frame: m for frame, m in sorted(self.masks.items()) if m.any()}
        if not painted:
            raise UsageError("nothing is painted on the masks, so nothing would be left out")
        object.__setattr__(self, "masks", painted)

    @property
    def shape(self) -> tuple[int, int]:
        height, width = next(iter(self.masks.values())).shape
        return height, width

    def entry(self, number: int, clip: str) -> dict[str, Any]:
        """What run.json says of it as the `number`-th edit of a run; `clip`: the fingerprint of the run's clip."""
        arrays = self._arrays()
        content = b"".join(arrays[name].tobytes() for name in sorted(arrays))
        return {
            "file": f"{number:03d}.npz",
            "scope": self.scope,
            "frames": list(self.masks),
            "pixels": sum(int(m.sum()) for m in self.masks.values()),
            "digest": hashlib.sha256(self.scope.encode() + content).hexdigest()[:16],
            "clip": clip,
        }

    def write(self, path: Path) -> None:
        """Write the masks, a bit a pixel. OutputError when that fails."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **self._arrays())  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path, scope: Scope) -> Exclusion:
        """What `write` wrote; InputError when it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                height, width = arrays["shape"].tolist()
                bits = np.unpackbits(arrays["bits"], axis=1, count=height * width)
                masks = bits.reshape(-1, height, width).astype(np.bool_)
                return cls(dict(zip(arrays["frames"].tolist(), masks, strict=True)), scope)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(
                f"the masks {path} are missing or damaged ({error}); take edits back with `marigold3d fuse RUN --undo`"
            ) from None

    def resized(self, width: int, height: int) -> Exclusion:
        """The same masks for depth maps of another size; those of which no pixel is left are gone."""
        if self.shape == (height, width):
            return self
        return Exclusion({frame: resized(mask, width, height) for frame, mask in self.masks.items()}, self.scope)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        masks = np.stack(list(self.masks.values())).reshape(len(self.masks), -1)
        return {"frames": np.array(list(self.masks)), "shape": np.array(self.shape), "bits": np.packbits(masks, axis=1)}


def resized(mask: NDArray[Any], width: int, height: int) -> BoolImage:
    """Where a mask (h, w) is not zero, at (height, width) by nearest pixels."""
    image = Image.fromarray((np.asarray(mask) != 0).astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) > 0


# -- of a run ---------------------------------------------------------------------------------------------------------


def edits_folder(run: Run) -> Path:
    return run.path / "edits"


def edits(run: Run) -> list[dict[str, Any]]:
    """What run.json says of the run's edits, first to last."""
    return list(run.manifest.get("edits", []))


def read_exclusions(run: Run, entries: Iterable[Mapping[str, Any]]) -> list[Exclusion]:
    """The masks of some of a run's edits."""
    return [Exclusion.read(edits_folder(run) / e["file"], e["scope"]) for e in entries]


def tidy(run: Run) -> None:
    """After a run was made anew: masks that it no longer lists, and clouds kept of the depth it had before, go."""
    listed = {e["file"] for e in edits(run)}
    for file in edits_folder(run).glob("*.*"):
        if file.name not in listed and file.suffix in (".npz", ".ply", ".json"):
            file.unlink(missing_ok=True)
    if edits_folder(run).is_dir() and not any(edits_folder(run).iterdir()):
        edits_folder(run).rmdir()


# -- masks put to depth -----------------------------------------------------------------------------------------------


def without(views: FusionInput, exclusions: Sequence[Exclusion], seen: Callable[[int], View | None]) -> FusionInput:
    """The views without what is excluded, which neither enters the cloud nor speaks for or against what does.

    seen: depth and pose of a source frame, None for one that has none: where "surface" masks were painted.
    """
    if not exclusions:
        return views
    camera = views.camera
    ours = [e.resized(camera.width, camera.height) for e in exclusions if _survives(e, camera)]
    fixed = [np.logical_or.reduce(list(e.masks.values())) for e in ours if e.scope == "pixels"]
    own = [e.masks for e in ours if e.scope != "pixels"]
    surfaces = [
        _Surface(mask, view) for e in ours if e.scope == "surface" for f, mask in e.masks.items() if (view := seen(f))
    ]
    rows = {position: row for row, position in enumerate(views.positions.tolist())}

    @lru_cache(MAPS_KEPT)
    def depth(position: int) -> DepthMap:
        row, whole = rows[position], views.depth(position)
        index = int(views.indices[row])
        keep = whole.valid.copy()
        for mask in [*fixed, *(masks[index] for masks in own if index in masks)]:
            keep &= ~mask
        left = whole.restricted_to(keep)
        for surface in surfaces:
            left = left.restricted_to(~surface.on(View(left, views.T_world_camera[row]), camera))
        return left

    return replace(views, depth=depth, whole=views.depth)


def _survives(exclusion: Exclusion, camera: Intrinsics) -> bool:
    """Whether anything is left of the masks at the camera's size: dots may fall between its pixels."""
    return any(resized(m, camera.width, camera.height).any() for m in exclusion.masks.values())


@dataclass(frozen=True, eq=False)
class _Surface:
    """What the painted pixels (H, W) of a view show."""

    painted: BoolImage
    view: View

    def on(self, other: View, camera: Intrinsics) -> BoolImage:
        """(H, W) True for the pixels of another view that show it too."""
        T = (inverse(self.view.T_world_camera) @ other.T_world_camera).astype(np.float32)
        rows, columns = np.nonzero(other.depth.valid)
        points = ray_grid(camera)[rows, columns] * other.depth.depth[rows, columns, None]  # (N, 3)
        points = (points @ T[:3, :3].T + T[:3, 3]).astype(np.float32)
        row, column, inside = pixels_under(points, camera)
        here = self.view.depth
        z = here.depth[row, column]
        near = SAME_SURFACE * z
        if here.sigma is not None:
            near = np.maximum(near, np.minimum(SIGMAS * here.sigma[row, column], FARTHEST * z))
        same = inside & self.painted[row, column] & here.valid[row, column] & (np.abs(points[:, 2] - z) < near)
        found = np.zeros(other.depth.valid.shape, np.bool_)
        found[rows[same], columns[same]] = True
        return found
