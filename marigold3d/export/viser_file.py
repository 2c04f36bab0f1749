"""Scenes of viser: a .viser file for its client, or one .html file that any browser shows. Needs [viser].

viser can only write what a server of its own holds, so one runs on this computer's own address while the file is made.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import atomic_path
from ..rigid import quaternion_xyzw
from ..types import Array, Intrinsics, PointCloud
from ..viewpoint import spacing
from .needed import needed, require_points

FRUSTUM = 0.03  # length of a camera's pyramid, of the cloud's extent
CAMERA_RGB = (255, 160, 0)
Camera = tuple[int, Array, NDArray[np.uint8] | None]
"""(source frame, T_world_camera (4, 4), rgb or None)."""


def write_viser(path: str | Path, cloud: PointCloud, camera: Intrinsics, cameras: Iterable[Camera]) -> None:
    """Write the cloud and some cameras, with their pictures where there are any; y points down, as in the poses.

    OutputError when viser is missing or the file cannot be written.
    """
    viser = needed("viser", "viser scenes", "viser")
    require_points(len(cloud))
    with atomic_path(path) as temporary, _server(viser) as server:
        _fill(server.scene, cloud, camera, cameras)
        serializer = server.get_scene_serializer()
        if temporary.suffix.lower() == ".html":
            temporary.write_text(serializer.as_html(), encoding="utf-8")
        else:
            temporary.write_bytes(serializer.serialize())


def _fill(scene: Any, cloud: PointCloud, camera: Intrinsics, cameras: Iterable[Camera]) -> None:
    low, high = np.percentile(cloud.points, [2, 98], axis=0)
    scene.set_up_direction("-y")
    scene.add_point_cloud(
        f"/cloud (units {cloud.units})",
        cloud.points,
        cloud.colors,
        point_size=spacing(cloud.points),
        point_shape="circle",
        precision="float32",
        point_shading="flat",
    )
    for index, T_world_camera, rgb in cameras:
        scene.add_camera_frustum(
            f"/cameras/{index:06d}",
            fov=2 * np.arctan(camera.height / (2 * camera.fy)),
            aspect=camera.width / camera.height,
            scale=FRUSTUM * float(np.linalg.norm(high - low)),
            color=CAMERA_RGB,
            image=rgb,
            format="jpeg",
            wxyz=quaternion_xyzw(T_world_camera[None])[0, [3, 0, 1, 2]],
            position=T_world_camera[:3, 3],
        )


@contextmanager
def _server(viser: Any) -> Iterator[Any]:
    """A server that no other computer can reach, without the banner it prints."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
        try:
            yield server
        finally:
            server.stop()
