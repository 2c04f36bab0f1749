"""The run folder: finished products for people, a zarr cache a frame a chunk for resuming, and the manifest `run.json`.

    RUN/run.json          versions, settings, units, stage times, the report
    RUN/camera.json       intrinsics of the depth maps and of the source frames
    RUN/trajectory.txt    TUM, camera to world
    RUN/depth/NNNNNN.png  uint16, NNNNNN the source frame's index; depth/encoding.json says how to read it
    RUN/sigma/NNNNNN.png  standard deviation of that depth likewise; runs of older versions have none
    RUN/cloud.ply, RUN/mesh.ply
    RUN/edits/            what a person has taken out of the cloud, see `exclusions`
    RUN/cache/            what an interrupted run resumes from: arrays.zarr (relative and aligned depth), <stage>.npz

Every write is atomic. A stage's results carry the digest of everything they depend on; they are reused under the same
digest only.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .atomic import atomic_path, output_error, writable_folder
from .errors import InputError, OutputError
from .export.depth_maps import DepthEncoding, read_depth_png, read_encoding
from .export.mesh_ply import read_mesh_ply
from .export.ply import read_ply
from .poses.files import read_tum
from .types import DepthMap, Intrinsics, PointCloud, Trajectory, TriangleMesh

FORMAT_VERSION = 1
VALUE_BITS, SIGMA_BITS = 14, 8  # of float32's mantissa that the cache keeps


class DamagedRunError(InputError):
    """A run's manifest cannot be read."""


class Run:
    """A run folder, open for reading and for the pipeline's writing."""

    def __init__(self, path: Path, manifest: dict[str, Any], before: dict[str, Any] | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self._before = before or {}  # the manifest that was there when this run was created

    # -- opening ------------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run. InputError when `path` holds none, or one of a newer format."""
        file = Path(path) / "run.json"
        if not file.is_file():
            raise InputError(f"{path} is not a run folder: it has no run.json (make one with `marigold3d video CLIP`)")
        try:
            manifest = json.loads(file.read_text())
            version = int(manifest["format_version"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedRunError(f"{file} is damaged ({error}); run again with --overwrite") from None
        if version > FORMAT_VERSION:
            raise InputError(f"{path} was written by a newer marigold3d (format {version}): upgrade to read it")
        return cls(Path(path), manifest)

    @classmethod
    def create(cls, path: str | Path, clip: str, settings: Mapping[str, Any], *, overwrite: bool) -> Run:
        """A run to work in: new, or the unfinished one that is there.

        OutputError when a finished run is there and `overwrite` is off, or when the folder holds anything else.
        """
        path = Path(path)
        before: dict[str, Any] = {}
        if (path / "run.json").is_file():
            before = cls._manifest_before(path, overwrite)
            if before.get("status") == "finished" and not overwrite:
                raise OutputError(f"{path} holds a finished run: choose another folder with -o, or pass --overwrite")
        elif path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise OutputError(f"{path} exists and is not a run folder: choose another with -o")
        writable_folder(path)
        run = cls(path, {}, before)
        try:
            run.update(
                format_version=FORMAT_VERSION,
                status="running",
                clip=clip,
                settings=dict(settings),
                stages=copy.deepcopy(before.get("stages", {})),
                seconds={} if before.get("status") == "finished" else dict(before.get("seconds", {})),
                report={},
                edits=copy.deepcopy(before.get("edits", [])),  # what a person did by hand survives a run made anew
            )
        except OutputError:
            with contextlib.suppress(OSError):
                path.rmdir()  # goes only when nothing is in it
            raise
        return run

    @classmethod
    def _manifest_before(cls, path: Path, overwrite: bool) -> dict[str, Any]:
        """The manifest that is there; with `overwrite`, a damaged one counts as none."""
        try:
            return cls.open(path).manifest
        except DamagedRunError:
            if not overwrite:
                raise
            return {}

    def give_up(self) -> None:
        """After an error: a finished run that was to be replaced is restored, one with nothing worth keeping removed.

        Estimated depth is worth keeping; only files this class writes are touched.
        """
        if self._before.get("status") == "finished":
            self.manifest = {**self._before, "stages": self.manifest["stages"]}  # the cache is as the stages left it
            self.update()
        elif (self.cache / "arrays.zarr").exists():
            self.update(status="interrupted")
        else:
            shutil.rmtree(self.cache, ignore_errors=True)
            (self.path / "run.json").unlink(missing_ok=True)
            if self.path.is_dir() and not any(self.path.iterdir()):
                self.path.rmdir()

    # -- manifest and cache -------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return self.manifest.get("status") == "finished"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    def update(self, **entries: Any) -> None:
        """Change manifest entries and write it."""
        self.manifest.update(entries)
        with atomic_path(self.path / "run.json") as temporary:
            temporary.write_text(json.dumps(self.manifest, indent=2) + "\n")

    def stage_done(self, stage: str, digest: str) -> bool:
        """Whether `stage` finished under this digest."""
        entry = self.manifest["stages"].get(stage, {})
        return bool(entry.get("digest") == digest and entry.get("done"))

    def begin_stage(self, stage: str, digest: str) -> bool:
        """Note that `stage` starts. True when a partial result under the same digest may be continued."""
        entry = self.manifest["stages"].get(stage, {})
        self.manifest["stages"][stage] = {**entry, "digest": digest, "done": False}
        self.update()
        return bool(entry.get("digest") == digest)

    def end_stage(self, stage: str, **kept: Any) -> None:
        """Note that `stage` finished, with whatever small results it wants kept in the manifest."""
        self.manifest["stages"][stage].update(done=True, **kept)
        self.update()

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add to the time spent in `stage`."""
        spent = self.manifest.setdefault("seconds", {})
        spent[stage] = round(spent.get(stage, 0.0) + seconds, 3)

    def save_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Store a stage's small results as cache/<name>.npz."""
        writable_folder(self.cache)
        with atomic_path(self.cache / f"{name}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def load_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        with np.load(self.cache / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)

    def frames_array(self, name: str, shape: tuple[int, int, int], *, fresh: bool = False) -> FrameArray:
        """The cached array `name`, (T, H, W), one compressed chunk a frame."""
        return FrameArray(self.cache / "arrays.zarr" / name, shape, "w" if fresh else "a")

    def alignment(self) -> dict[str, Any]:
        """The report of the alignment. InputError when the run has none."""
        report = self.manifest.get("report", {}).get("alignment")
        if not report:
            raise InputError(f"{self.path} has no alignment report: it is not finished, or of an older version")
        return dict(report)

    # -- products -----------------------------------------------------------------------------------------------------

    @property
    def frame_indices(self) -> list[int]:
        """Source indices of the frames that have aligned depth."""
        return sorted(int(file.stem) for file in (self.path / "depth").glob("[0-9]*.png"))

    def encoding(self) -> DepthEncoding:
        return read_encoding(self.path / "depth" / "encoding.json")

    def depth(self, frame_index: int, *, sigma: bool = True) -> DepthMap:
        """Aligned depth of a source frame, with its sigma where the run has it, 0 where depth is invalid.

        sigma: whether it is wanted; without it, reading takes half the time.
        """
        name = f"{frame_index:06d}.png"
        depth, file = read_depth_png(self.path / "depth" / name, self.encoding()), self.path / "sigma" / name
        if not sigma or not file.is_file():
            return depth
        deviation = read_depth_png(file, read_encoding(file.with_name("encoding.json"))).depth
        if deviation.shape != depth.depth.shape:
            raise InputError(f"{file}: not of the size of its depth map; run again with --overwrite")
        return replace(depth, sigma=deviation)

    def camera(self) -> Intrinsics:
        """Intrinsics of the depth maps."""
        file = self.path / "camera.json"
        try:
            entry = json.loads(file.read_text())
            numbers = {name: entry[name] for name in ("fx", "fy", "cx", "cy", "width", "height")}
            return Intrinsics(**numbers, distortion=tuple(entry["distortion"]) if entry.get("distortion") else None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is missing or damaged ({error!r}): run again with --overwrite") from None

    def trajectory(self) -> Trajectory:
        return read_tum(self.path / "trajectory.txt")

    def posed_frames(self) -> Trajectory:
        """The trajectory, one pose for each of `frame_indices`. InputError when their numbers differ."""
        trajectory, frames = self.trajectory(), len(self.frame_indices)
        if len(trajectory) != frames:
            raise InputError(
                f"{self.path} has {frames} depth maps but {len(trajectory)} poses: run again with --overwrite"
            )
        return trajectory

    def cloud(self) -> PointCloud:
        return read_ply(self.path / "cloud.ply")

    @property
    def has_cloud(self) -> bool:
        return (self.path / "cloud.ply").is_file()

    @property
    def has_mesh(self) -> bool:
        return (self.path / "mesh.ply").is_file()

    def mesh(self) -> TriangleMesh:
        """InputError when the run has none."""
        if not self.has_mesh:
            raise InputError(f"{self.path} has no mesh: make it with `marigold3d fuse {self.path} --mesh`")
        return read_mesh_ply(self.path / "mesh.ply")


class FrameArray:
    """(T, H, W) on disk, a frame a chunk; a frame is written whole or not at all, so what exists is complete.

    Mantissas are rounded to what the numbers are good for, which compresses three times better than float32 does:
    values to 3e-5 of themselves (finer than the 16 bits of the depth maps), sigma to 2e-3.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], mode: Literal["a", "w"]) -> None:
        import zarr
        from numcodecs import BitRound

        self._folder = path
        self._rounding = BitRound(SIGMA_BITS if path.name.endswith("sigma") else VALUE_BITS)
        layout = {
            "shape": shape,
            "chunks": (1, *shape[1:]),
            "dtype": "float32",
            "fill_value": float("nan"),
            "compressors": zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"),
        }
        usable = mode == "a" and (path / "zarr.json").is_file()
        try:
            with zarr.config.set({"array.write_empty_chunks": True}):  # else a frame of NaN would not count as written
                self._array = zarr.open_array(path, mode="r+") if usable else None
                if self._array is None or self._array.shape != shape:
                    self._array = zarr.create_array(path, **layout, overwrite=True)
        except OSError as error:
            raise output_error(path, error) from error

    def __contains__(self, position: int) -> bool:
        return (self._folder / "c" / str(position) / "0" / "0").is_file()

    def __getitem__(self, position: int) -> NDArray[np.float32]:
        frame: NDArray[np.float32] = np.asarray(self._array[position])  # type: ignore[index]
        return frame

    def get(self, position: int) -> NDArray[np.float32] | None:
        """The frame, or None when it was not written."""
        present = position in self
        return self[position] if present else None

    def __setitem__(self, position: int, frame: NDArray[np.float32]) -> None:
        rounded = np.asarray(self._rounding.encode(np.array(frame, np.float32))).view(np.float32)
        try:
            self._array[position] = rounded.reshape(frame.shape)  # type: ignore[index]
        except OSError as error:
            raise output_error(self._folder, error) from error
