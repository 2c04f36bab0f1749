"""A frame of Hypersim as it is published: HDF5 files of linear colour, distance, and what each pixel shows.

Roberts et al., "Hypersim: A Photorealistic Synthetic Dataset for Holistic Indoor Scene Understanding", ICCV 2021.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marigold3d.errors import UsageError
from training.data.samples import CorruptSample
from training.data.splits import read_table

Float = NDArray[np.float32]
FOCAL_PX, WIDTH_PX = 886.81, 1024  # of every published camera: 60 degrees across
NO_ENTITY = -1  # render_entity_id where a ray met nothing
PERCENTILE, BRIGHTNESS, GAMMA = 90, 0.8, 1 / 2.2
LUMA = np.array([0.3, 0.59, 0.11], np.float32)  # CCIR 601, to two digits as Hypersim has it
DARK = 1e-4  # pictures whose percentile is below this are left black
COLUMNS = ("scene_name", "camera_name", "frame_id", "included_in_public_release", "split_partition_name")


@dataclass(frozen=True)
class Frame:
    """One picture: scene "ai_001_001", camera "cam_00", frame number."""

    scene: str
    camera: str
    number: int

    @property
    def color(self) -> str:
        """Path below the data set's root: (H, W, 3) linear radiance, float16."""
        return f"{self.scene}/images/scene_{self.camera}_final_hdf5/frame.{self.number:04d}.color.hdf5"

    @property
    def distance(self) -> str:
        """Path: (H, W) metres from the camera's centre, NaN where there is nothing."""
        return self._geometry("depth_meters")

    @property
    def entity(self) -> str:
        """Path: (H, W) number of the object seen, or NO_ENTITY."""
        return self._geometry("render_entity_id")

    @property
    def files(self) -> tuple[str, str, str]:
        """All that is needed of it."""
        return self.color, self.distance, self.entity

    @property
    def rgb_name(self) -> str:
        """Path of the tone-mapped picture in the preprocessed form."""
        return f"{self.scene}/rgb_{self.camera}_fr{self.number:04d}.png"

    @property
    def depth_name(self) -> str:
        """Path of its z-depth in the preprocessed form."""
        return f"{self.scene}/depth_plane_{self.camera}_fr{self.number:04d}.png"

    def _geometry(self, what: str) -> str:
        return f"{self.scene}/images/scene_{self.camera}_geometry_hdf5/frame.{self.number:04d}.{what}.hdf5"


def listed_frames(split_csv: str | Path) -> dict[str, list[Frame]]:
    """The public frames of each partition (train, val, test) in metadata_images_split_scene_v1.csv."""
    partitions: dict[str, list[Frame]] = {}
    for row in read_table(split_csv, COLUMNS):
        if row["included_in_public_release"].strip().lower() == "true":
            frame = Frame(row["scene_name"], row["camera_name"], int(row["frame_id"]))
            partitions.setdefault(row["split_partition_name"], []).append(frame)
    return partitions


def found_frames(root: Path) -> list[Frame]:
    """Every frame below `root` of which there is a color file, in order."""
    frames = []
    for path in sorted(root.glob("ai_*/images/scene_cam_*_final_hdf5/frame.*.color.hdf5")):
        folder, number = re.fullmatch(r"scene_(.+)_final_hdf5", path.parent.name), path.name.split(".")[1]
        if folder and number.isdigit():
            frames.append(Frame(path.parents[2].name, folder[1], int(number)))
    return frames


def read_frame(root: Path, frame: Frame) -> tuple[NDArray[np.uint8], Float]:
    """Tone-mapped sRGB (H, W, 3) uint8 and z-depth (H, W) metres, 0 where nothing is seen. Raises CorruptSample."""
    color, distance_m, entity = (_dataset(root, path) for path in frame.files)
    if color.shape != (*distance_m.shape, 3) or entity.shape != distance_m.shape:
        raise CorruptSample(
            f"{frame.color}: color {color.shape}, depth {distance_m.shape} and entities {entity.shape} do not fit"
        )
    seen = entity != NO_ENTITY
    depth_m = np.where(seen, np.nan_to_num(planar_depth(distance_m), nan=0.0, posinf=0.0), 0.0)
    return np.rint(tone_mapped(color, seen) * 255.0).astype(np.uint8), depth_m.astype(np.float32)


def tone_mapped(color: Any, seen: NDArray[np.bool_]) -> Float:
    """sRGB-like (H, W, 3) in 0..1 of linear color (H, W, 3): scaled so that the brightness of PERCENTILE of the `seen`
    pixels (H, W) becomes BRIGHTNESS after the gamma curve.

    The operator of Roberts et al. 2021, as their scene_generate_images_tonemap.py has it.
    """
    linear = np.nan_to_num(np.asarray(color, np.float32), nan=0.0)
    scale = 1.0
    if seen.any():
        bright = float(np.percentile((linear @ LUMA)[seen], PERCENTILE))
        scale = BRIGHTNESS ** (1 / GAMMA) / bright if bright >= DARK else 0.0
    return np.clip((scale * linear).clip(min=0.0) ** GAMMA, 0.0, 1.0)


def planar_depth(distance_m: Any) -> Float:
    """z-depth (H, W) of distances (H, W) from the camera's centre: z = d f / |(u - cx, v - cy, f)|, pixel centres."""
    distance_m = np.asarray(distance_m, np.float32)
    height, width = distance_m.shape
    f_px = FOCAL_PX * width / WIDTH_PX
    u, v = np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2
    ray_px = np.sqrt(u[None] ** 2 + v[:, None] ** 2 + f_px**2)
    return (distance_m * (f_px / ray_px)).astype(np.float32)


def _dataset(root: Path, path: str) -> NDArray[Any]:
    try:
        import h5py
    except ImportError:
        raise UsageError("reading Hypersim's HDF5 files needs h5py: pip install 'marigold3d[train]'") from None
    try:
        with h5py.File(root / path, "r") as file:
            return file["dataset"][:]
    except (OSError, KeyError, ValueError) as error:
        raise CorruptSample(f"{path}: {str(error).splitlines()[0]}") from error
