"""A sensor's depths carried to the frames around: what one frame measured, its neighbours see too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..camera import on_image, unproject
from ..rigid import inverse, transform
from ..types import Array, Intrinsics, SparseCues
from .cue_arrays import joined, thinned

REACH = 12  # frames to either side; farther ones see other things, and the poses' errors grow
POSE_SHARE = 0.02  # of the depth: what the way between two frames adds to a cue's deviation
MOST = 400  # cues a frame hands to each other one


def carried_around(cues: Mapping[int, SparseCues], T_world_camera: Array, camera: Intrinsics) -> dict[int, SparseCues]:
    """For every frame, the cues of the frames around it as it would see them, without its own.

    cues: of single frames, by position in T_world_camera (T, 4, 4). What is hidden from a frame is left to the robust
    fit: it lies behind what the frame sees.
    """
    out: dict[int, list[SparseCues]] = {}
    for source, own in cues.items():
        some = thinned(own, MOST)
        sigma = 0.01 * some.depth if some.sigma is None else some.sigma
        points = transform(T_world_camera[source], unproject(some.uv, some.depth, camera))
        for frame in range(max(0, source - REACH), min(len(T_world_camera), source + REACH + 1)):
            if frame == source or not len(some):
                continue
            here = transform(inverse(T_world_camera[frame]), points)
            uv, inside = on_image(here, camera)
            z = here[:, 2]
            seen = inside & (z > 0.05 * some.depth)
            away = np.hypot(sigma[seen], POSE_SHARE * z[seen])
            out.setdefault(frame, []).append(SparseCues(uv[seen], z[seen], away, own.source))
    return {frame: thinned(joined(parts), 2 * MOST) for frame, parts in out.items()}
