"""A foreign structure-from-motion model as cues: what each image saw, at its depth in that model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from ..poses import matching
from ..poses.observed import ObservedModel
from ..poses.sparse import MIN_SIN_ANGLE
from ..types import Array, Units
from .clip_frames import NOT_USED, ClipFrames
from .framed import CueRows, FramedCues, framed
from .sensor import ASPECT_TOLERANCE
from .tally import Tally

LEAST_ERROR_PX = 0.5  # keypoints are no better than this, however well a small model fits them
OUTLIER = 5.0  # medians of the reprojection error: an observation beyond is a wrong match


def model_cues(path: Path, model: ObservedModel, clip: ClipFrames, units: Units, share: float | None) -> FramedCues:
    """Cues of the images that are frames of the clip, by name, number or order; depth in the model's own scale.

    Sigma, unless `share` of the depth is given, is the depth error that the model's median reprojection error makes
    under the point's widest angle. Raises InputError when no image is a frame in use, or they show another view.
    """
    frames = matching.ClipFrames(
        clip.timestamps_s, clip.indices, clip.source_count, None if clip.names is None else tuple(clip.names)
    )
    row_of_position = matching.match_names(path, model.names, frames)
    position_of_image = np.full(len(model.names), NOT_USED)
    used = row_of_position >= 0
    position_of_image[row_of_position[used]] = np.flatnonzero(used)
    _check_views(path, model, position_of_image, clip)
    if not np.isfinite(model.reprojection_px).any():
        raise InputError(f"{path}: all of its points lie behind the cameras that see them; export the model again")
    error_px = max(LEAST_ERROR_PX, float(np.nanmedian(model.reprojection_px)))
    sin_angle = model.sin_angle[model.seen_point]
    rows = CueRows(
        position_of_image[model.seen_image],
        _to_maps(model, clip),
        model.depth,
        _sigma(model, error_px) if share is None else share * model.depth,
        model.seen_point,
    )
    keep, tally = Tally.sift(
        len(rows.depth),
        (
            ("seen under less than 1 degree", sin_angle < MIN_SIN_ANGLE),
            ("wrong matches", ~(model.reprojection_px <= OUTLIER * error_px)),
        ),
    )
    kept = CueRows(*(getattr(rows, name)[keep] for name in ("position", "uv", "depth", "sigma", "point")))
    return framed("model", str(path), units, kept, clip, share, before=tally)


def _sigma(model: ObservedModel, error_px: float) -> Array:
    """(O,) as in `poses.sparse`: z * error / (f * sine of the widest angle)."""
    f_px = np.array([camera.fx for camera in model.cameras])[model.seen_image]
    return model.depth * error_px / (f_px * np.maximum(model.sin_angle[model.seen_point], MIN_SIN_ANGLE))


def _to_maps(model: ObservedModel, clip: ClipFrames) -> Array:
    """(O, 2) the observations in pixels of the depth maps."""
    sizes = np.array([(camera.width, camera.height) for camera in model.cameras])[model.seen_image]  # (O, 2)
    return model.uv / sizes * (clip.camera.width, clip.camera.height)


def _check_views(path: Path, model: ObservedModel, position_of_image: Array, clip: ClipFrames) -> None:
    width, height = clip.source_size
    for camera, position in zip(model.cameras, position_of_image, strict=True):
        if position != NOT_USED and abs(camera.width * height / (camera.height * width) - 1) > ASPECT_TOLERANCE:
            raise InputError(
                f"{path}: its images are {camera.width}x{camera.height}, the clip's frames {width}x{height}: "
                "reconstruct from the clip's own frames, neither cropped nor turned"
            )
