"""What the matrices of a pose file mean, and the same matrices read with another meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..errors import UsageError
from ..rigid import from_quaternion_xyzw, inverse, quaternion_xyzw
from ..types import Array

OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # of a camera's axes: y up, z backward to y down, z forward

Quaternion = Literal["xyzw", "wxyz"]


@dataclass(frozen=True)
class Convention:
    """How a file states poses: the camera's axes, the direction of its matrices, the order of its quaternions.

    opengl: camera axes x right, y up, z backward instead of OpenCV's x right, y down, z forward; world_to_camera:
    matrices carry world to camera coordinates instead of back; quaternion: None where the file has matrices.
    """

    opengl: bool = False
    world_to_camera: bool = False
    quaternion: Quaternion | None = None

    def told(self, words: Sequence[str]) -> Convention:
        """This convention but for what `words` of WORDS say; UsageError for words that mean nothing here."""
        out = self
        for word in words:
            if word in ("opencv", "opengl"):
                out = replace(out, opengl=word == "opengl")
            elif word in ("camera-to-world", "world-to-camera"):
                out = replace(out, world_to_camera=word == "world-to-camera")
            elif word not in ("xyzw", "wxyz"):
                raise UsageError(f"a pose convention is made of {', '.join(WORDS)}, got {word!r}")
            elif out.quaternion is None:
                raise UsageError(f"the pose file holds matrices, no quaternions: leave {word!r} out of the convention")
            else:
                out = replace(out, quaternion=word)  # type: ignore[arg-type]  # one of the two
        return out

    def words_from(self, other: Convention) -> list[str]:
        """What has to be told of `other` to make it this one."""
        words = []
        if self.opengl != other.opengl:
            words.append("opengl" if self.opengl else "opencv")
        if self.world_to_camera != other.world_to_camera:
            words.append("world-to-camera" if self.world_to_camera else "camera-to-world")
        if self.quaternion is not None and self.quaternion != other.quaternion:
            words.append(self.quaternion)
        return words


WORDS = ("opencv", "opengl", "camera-to-world", "world-to-camera", "xyzw", "wxyz")
TUM = Convention(quaternion="xyzw")
COLMAP = Convention(world_to_camera=True, quaternion="wxyz")
OPENCV = Convention()
OPENGL = Convention(opengl=True)


def to_world_camera(M: Array, convention: Convention) -> Array:
    """T_world_camera (N, 4, 4), OpenCV axes, of a file's matrices (N, 4, 4)."""
    T = inverse(M) if convention.world_to_camera else M
    return T @ OPENGL_TO_OPENCV if convention.opengl else T


def reread(T_world_camera: Array, read_as: Convention, wanted: Convention) -> Array:
    """T_world_camera (N, 4, 4) had the file been read in another convention than it was."""
    if wanted == read_as:
        return T_world_camera
    T = T_world_camera @ OPENGL_TO_OPENCV if read_as.opengl else T_world_camera
    M = inverse(T) if read_as.world_to_camera else T
    if wanted.quaternion != read_as.quaternion:
        xyzw = quaternion_xyzw(M)
        as_stated = xyzw if read_as.quaternion == "xyzw" else np.roll(xyzw, 1, axis=1)
        M = from_quaternion_xyzw(as_stated if wanted.quaternion == "xyzw" else np.roll(as_stated, -1, 1), M[:, :3, 3])
    return to_world_camera(M, wanted)
