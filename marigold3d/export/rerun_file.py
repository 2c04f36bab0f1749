"""Rerun recordings (.rrd): cloud, camera path, and every frame's depth and picture along the timelines. Needs [rerun].

Rerun's cameras are pinholes: what a lens's distortion shifts, it shows unshifted. The SDK that writes the file sends
nothing anywhere; Rerun's viewer has anonymous usage statistics of its own (`rerun analytics disable`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import __version__
from ..atomic import atomic_path
from ..rigid import quaternion_xyzw
from ..types import Array, DepthMap, Intrinsics, PointCloud, Trajectory, Units
from .needed import needed

STEPS = 65535  # of the 16-bit depth images, from 0 to the largest depth
JPEG_QUALITY = 85
PATH_RGB = (255, 160, 0)


class Recording:
    """An open recording; `add` a frame after the other."""

    def __init__(self, rerun: Any, stream: Any, camera: Intrinsics, farthest: float) -> None:
        self._rerun, self._stream, self._camera = rerun, stream, camera
        self._steps = STEPS / farthest

    def add(
        self,
        frame_index: int,
        timestamp_s: float,
        T_world_camera: Array,
        depth: DepthMap,
        rgb: NDArray[np.uint8] | None = None,
    ) -> None:
        """Log a frame: timelines `frame` (its index in the source) and `time` (seconds from the clip's start)."""
        rr, stream, turned = self._rerun, self._stream, quaternion_xyzw(T_world_camera[None])[0]
        stream.set_time("frame", sequence=frame_index)
        stream.set_time("time", duration=timestamp_s)
        stream.log("world/camera", rr.Transform3D(translation=T_world_camera[:3, 3], quaternion=turned))
        values = np.where(depth.valid, np.rint(depth.depth * self._steps).clip(1, STEPS), 0).astype(np.uint16)
        # Not EncodedDepthImage, whose `meter` is documented both as units a step and as steps a unit.
        stream.log("world/camera/depth", rr.DepthImage(values, meter=self._steps))
        if rgb is not None:
            picture = rr.EncodedImage(contents=_jpeg(rgb), media_type="image/jpeg")
            stream.log("world/camera/picture", picture)

    def begin(self, trajectory: Trajectory, cloud: PointCloud | None, units: Units) -> None:
        """Log what holds at all times."""
        rr, stream, c = self._rerun, self._stream, self._camera
        note = f"marigold3d {__version__}; units {units}; camera poses are camera to world, x right, y down, z forward"
        stream.log("about", rr.TextDocument(note), static=True)
        stream.log("world", rr.ViewCoordinates.RDF, static=True)
        stream.log("world/path", rr.LineStrips3D([trajectory.centres], colors=[PATH_RGB]), static=True)
        lens = rr.Pinhole(focal_length=[c.fx, c.fy], principal_point=[c.cx, c.cy], resolution=[c.width, c.height])
        stream.log("world/camera", lens, static=True)
        if cloud is not None:
            stream.log("world/cloud", rr.Points3D(cloud.points, colors=cloud.colors), static=True)


@contextmanager
def rerun_recording(
    path: str | Path,
    trajectory: Trajectory,
    camera: Intrinsics,
    farthest: float,
    units: Units,
    cloud: PointCloud | None = None,
) -> Iterator[Recording]:
    """A recording that appears when the block ends well; farthest: the largest depth of all frames.

    OutputError when rerun is missing or the file cannot be written.
    """
    rerun = needed("rerun", "Rerun recordings", "rerun")
    with atomic_path(path) as temporary:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # what cannot be written is known before rerun tries
        stream = rerun.RecordingStream("marigold3d")
        stream.save(str(temporary))
        try:
            recording = Recording(rerun, stream, camera, farthest)
            recording.begin(trajectory, cloud, units)
            yield recording
        finally:
            stream.flush()
            stream.disconnect()


def _jpeg(rgb: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(rgb).save(content, "JPEG", quality=JPEG_QUALITY)
    return content.getvalue()
