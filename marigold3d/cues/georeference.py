"""From the frame of a run's camera poses to that of a survey: control points are triangulated, then aligned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from ..errors import GeometryError
from ..poses.sparse import MIN_SIN_ANGLE
from ..rigid import Similarity, umeyama
from ..types import Array, BoolImage, Intrinsics
from .control_points import ControlPoints
from .triangulate import Triangulated, triangulate

MAX_ERROR = 0.01  # of the image's width: a point whose rays miss each other by more was marked or posed wrongly
PICK_PX = 1.0  # standard deviation of a marked pixel, px of the depth maps
ON_A_LINE = 0.02  # points whose extent across their line is a smaller share of that along it leave a turn about it open
MISTAKE_LEVEL = 0.05  # significance, over all points, at which one is taken for a mistake
PARAMETERS = 7  # of a similarity


@dataclass(frozen=True, eq=False)
class Georeference:
    """Survey metres per scene unit, and where the scene lies in the survey's frame.

    scale, scale_sigma: factor and its standard deviation; T_survey_world: None when the points (two, or all on a line)
    give the scale alone; rms_m: of the residuals of the points used, 0 where nothing was left to check; residuals_m:
    by point; rejected: reason by point.
    """

    scale: float
    scale_sigma: float
    T_survey_world: Similarity | None
    rms_m: float
    residuals_m: Mapping[str, float]
    rejected: Mapping[str, str]

    @property
    def n(self) -> int:
        """Points used."""
        return len(self.residuals_m)

    def of_scaled_world(self) -> Georeference:
        """The same for poses that were multiplied by `scale`, and so are in metres."""
        T = self.T_survey_world
        rigid = None if T is None else Similarity(T.scale / self.scale, T.rotation, T.translation)
        return Georeference(1.0, self.scale_sigma / self.scale, rigid, self.rms_m, self.residuals_m, self.rejected)

    def as_cues(self, points: ControlPoints) -> ControlPoints:
        """The points as cues for poses in the world of this georeference, without those that were found mistaken."""
        if self.T_survey_world is None:
            return points
        wrong = frozenset(name for name, reason in self.rejected.items() if reason == MISTAKE)
        return points.placed(self.T_survey_world, error_m=self.rms_m, wrong=wrong)


MISTAKE = "disagrees with the other points"


def georeference(
    points: ControlPoints, T_world_camera: Array, camera: Intrinsics, *, posed: BoolImage | None = None
) -> Georeference:
    """Where the frame of the poses T_world_camera (T, 4, 4) of the used frames lies in the survey's.

    camera: of the depth maps; posed (T,): frames whose pose is known, all of them by default. Points seen by fewer than
    two posed frames, under less than a degree, or inconsistently are left out; of four or more, one by one, those that
    contradict the rest. Raises GeometryError when fewer than two are left.
    """
    found, rejected = _triangulated(points, T_world_camera, camera, posed)
    if len(found) < 2:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
        raise GeometryError(
            f"georeferencing needs two control points in two posed frames each; {len(found)} can be used ({reasons}): "
            "mark points in more frames"
        )
    ids = list(found)
    names = [points.names[i] for i in ids]
    world = np.array([found[i].point for i in ids])
    survey = points.survey_m[ids]
    if len(ids) < 3 or _on_a_line(survey):
        scale, scale_sigma = _scale_of_distances(world, survey, [found[i].covariance for i in ids])
        return Georeference(scale, scale_sigma, None, 0.0, dict.fromkeys(names, 0.0), rejected)
    used = _without_mistakes(world, survey)
    T = umeyama(world[used], survey[used])
    residuals = np.linalg.norm(T.apply(world) - survey, axis=1)
    rejected |= {name: MISTAKE for name, good in zip(names, used, strict=True) if not good}
    return Georeference(
        T.scale,
        _scale_sigma(world[used], survey[used]),
        T,
        float(np.sqrt(np.mean(residuals[used] ** 2))),
        {name: float(r) for name, r, good in zip(names, residuals, used, strict=True) if good},
        rejected,
    )


def _triangulated(
    points: ControlPoints, T_world_camera: Array, camera: Intrinsics, posed: BoolImage | None
) -> tuple[dict[int, Triangulated], dict[str, str]]:
    """Points by number, and by name why the others cannot be used."""
    has_pose = np.ones(len(T_world_camera), bool) if posed is None else posed
    found, rejected = {}, {}
    for i, name in enumerate(points.names):
        seen = np.flatnonzero((points.point == i) & has_pose[points.position])
        if len(set(points.position[seen].tolist())) < 2:
            rejected[name] = "seen by fewer than two posed frames"
            continue
        result = triangulate(points.uv[seen], T_world_camera[points.position[seen]], camera)
        if result.sin_angle < MIN_SIN_ANGLE:
            rejected[name] = "seen under less than 1 degree"
        elif result.error_px > MAX_ERROR * camera.width:
            rejected[name] = f"its rays miss each other by {result.error_px:.1f} px"
        else:
            found[i] = result
    return found, rejected


def _on_a_line(points: Array) -> bool:
    along, across, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)[1]
    return bool(across < ON_A_LINE * along)


def _scale_of_distances(world: Array, survey: Array, covariances: list[Array]) -> tuple[float, float]:
    """Median ratio of the distances between pairs, and the standard deviation that marking errors give it."""
    ratios, sigmas = [], []
    for a, b in combinations(range(len(world)), 2):
        step = world[b] - world[a]
        distance = float(np.linalg.norm(step))
        wanted = float(np.linalg.norm(survey[b] - survey[a]))
        if min(distance, wanted) <= 0:
            raise GeometryError("two control points lie at one place: give points that are apart")
        variance = step @ (covariances[a] + covariances[b]) @ step / distance**2 * PICK_PX**2
        ratios.append(wanted / distance)
        sigmas.append(wanted / distance**2 * float(np.sqrt(variance)))
    return float(np.median(ratios)), float(np.median(sigmas))


def _without_mistakes(world: Array, survey: Array) -> NDArray[np.bool_]:
    """(N,) the points that agree, leaving out one at a time: an F test on how far the residuals fall by that."""
    used = np.ones(len(world), bool)
    rounding = len(world) * (1e-9 * np.abs(survey - survey.mean(0)).max()) ** 2
    while used.sum() > 3:
        squares = _squares(world, survey, used)
        if squares <= rounding:
            break
        ids = np.flatnonzero(used)
        without = np.array([_squares(world, survey, used & (np.arange(len(used)) != i)) for i in ids])
        worst = int(without.argmin())
        freedom = 3 * (len(ids) - 1) - PARAMETERS
        F = (squares - without[worst]) / 3 / (max(float(without[worst]), rounding, 1e-300) / freedom)
        if fdtrc(3, freedom, F) * len(ids) > MISTAKE_LEVEL:
            break
        used[ids[worst]] = False
    return used


def _squares(world: Array, survey: Array, used: NDArray[np.bool_]) -> float:
    """Sum of the squared residuals of the points in use after aligning them; infinite when they do not determine it."""
    if _on_a_line(survey[used]):
        return np.inf
    return float(((umeyama(world[used], survey[used]).apply(world[used]) - survey[used]) ** 2).sum())


def _scale_sigma(world: Array, survey: Array) -> float:
    """Standard deviation of the scale of N >= 3 aligned points: from their residuals, and by leaving out each of them.

    The larger of the two: triangulated points err along their rays, which residuals taken as alike in all directions
    make too little of; few points left out say too little by themselves.
    """
    n = len(world)
    everything = np.ones(n, bool)
    variance = _squares(world, survey, everything) / (3 * n - PARAMETERS)  # m2 an axis
    by_residuals = float(np.sqrt(variance / ((world - world.mean(0)) ** 2).sum()))
    parts = [np.arange(n) != i for i in range(n)]
    if n == 3 or any(_on_a_line(survey[part]) for part in parts):
        return by_residuals
    scales = np.array([umeyama(world[part], survey[part]).scale for part in parts])
    return max(by_residuals, float(np.sqrt((n - 1) * scales.var())))  # the jackknife
