"""A bundle adjustment: poses, one focal length and the depth of every point, until points lie where they were seen.

Gauss-Newton steps with Levenberg's damping; depths are eliminated by the Schur complement (Triggs et al., "Bundle
adjustment - a modern synthesis", 1999, 6.1). Cauchy weights, so that what moves or is mistaken does not pull. The depth
maps are a weak prior of the points' inverse depths, which keeps the scale; the given poses one of the poses.

Poses are perturbed on the right, T <- T exp(xi), xi = (rotation, translation in `unit`), so the world's frame and unit
do not matter. To first order exp is taken to be (Exp(rotation), translation). Residuals are in pixels on the
undistorted picture: observations are undistorted once a step, under the focal length of that step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.spatial.transform import Rotation

from ..camera import normalised
from ..rigid import inverse
from ..types import Array, Intrinsics
from .matches import Matches
from .points import Points

STEPS = 12
CONVERGED = 1e-4  # relative gain of a step that ends the work
NOISE_PX = 0.3  # of a match
CAUCHY_PX = 3 * NOISE_PX
DEPTH_TRUST = 3.0  # sigmas of the depth maps are widened so much: errors are shared by neighbours, so they count less
LEAST_DEPTH_SHARE = 0.1  # no depth is taken to be surer, share of it
POSE_SIGMA = np.repeat([np.radians(3.0), 0.1], 3)  # prior of a pose: rotation rad, translation in units
FOCAL_SIGMA = 0.1  # prior of the log focal length
FIXED = 1e12  # weight of what does not move
LEAST_SHRINK = 0.2  # a step takes no inverse depth below so much of itself


@dataclass(frozen=True, eq=False)
class State:
    """What is adjusted: poses (M, 4, 4), camera, inverse depths (P,); unit: of translations, in scene units."""

    T_world_camera: Array
    camera: Intrinsics
    inverse_depth: Array
    unit: float

    def moved(self, poses: Array, log_focal: float, inverse_depth: Array) -> State:
        """After updates (M, 6), (), (P,)."""
        step = np.tile(np.eye(4), (len(poses), 1, 1))
        step[:, :3, :3] = Rotation.from_rotvec(poses[:, :3]).as_matrix()
        step[:, :3, 3] = poses[:, 3:] * self.unit
        f = np.exp(log_focal)
        camera = replace(self.camera, fx=float(self.camera.fx * f), fy=float(self.camera.fy * f))
        rho = np.maximum(self.inverse_depth + inverse_depth, LEAST_SHRINK * self.inverse_depth)
        return State(self.T_world_camera @ step, camera, rho, self.unit)


@dataclass(frozen=True, eq=False)
class Seen:
    """Residuals (O, 2) in px on the undistorted picture, and their derivatives by what is adjusted."""

    residual_px: Array  # (O, 2)
    by_inverse_depth: Array  # (O, 2)
    by_anchor: Array  # (O, 2, 6)
    by_frame: Array  # (O, 2, 6)
    by_log_focal: Array  # (O, 2)

    @classmethod
    def of(cls, matches: Matches, state: State) -> Seen:
        camera, points = state.camera, matches.points
        a = _rays(points.uv, camera)[matches.point]
        b = _rays(matches.uv, camera)
        near = 1e-4
        closer = replace(camera, fx=camera.fx * (1 + near), fy=camera.fy * (1 + near))
        a_f = (_rays(points.uv, closer)[matches.point] - a) / near
        b_f = (_rays(matches.uv, closer) - b) / near
        rho = state.inverse_depth[matches.point][:, None]
        T = inverse(state.T_world_camera)[matches.frame] @ state.T_world_camera[points.frame[matches.point]]
        R, t = T[:, :3, :3], T[:, :3, 3]
        h = np.einsum("oij,oj->oi", R, a) + rho * t  # the point over its anchor depth, in the frame that sees it
        z = np.maximum(h[:, 2], 1e-6)
        f = np.array([camera.fx, camera.fy])
        J = np.zeros((len(h), 2, 3))  # of the pinhole, px
        J[:, 0, 0], J[:, 1, 1] = f[0] / z, f[1] / z
        J[:, :, 2] = -f * h[:, :2] / z[:, None] ** 2
        residual = f * (h[:, :2] / z[:, None] - b[:, :2])
        JR = J @ R
        return cls(
            residual,
            np.einsum("oij,oj->oi", J, t),
            np.concatenate([-JR @ _cross(a), JR * (rho * state.unit)[..., None]], 2),
            np.concatenate([J @ _cross(h), -J * (rho * state.unit)[..., None]], 2),
            residual + np.einsum("oij,oj->oi", JR, a_f) - f * b_f[:, :2],
        )

    @property
    def weight(self) -> Array:
        """(O,) 1/px^2: Cauchy's."""
        return 1 / (NOISE_PX**2 * (1 + (self.residual_px**2).sum(1) / CAUCHY_PX**2))

    @property
    def cost(self) -> float:
        return float((CAUCHY_PX / NOISE_PX) ** 2 * np.log1p((self.residual_px**2).sum(1) / CAUCHY_PX**2).sum())


def solve(matches: Matches, state: State, prior: Prior) -> State:
    """The state of least cost near `state`: damped Gauss-Newton steps until it falls no further."""
    damping = 1e-3
    seen = Seen.of(matches, state)
    cost = seen.cost + prior.cost(state)
    for _ in range(STEPS):
        trial = state.moved(*_step(matches, seen, state, prior, damping))
        found = Seen.of(matches, trial)
        new = found.cost + prior.cost(trial)
        if not new < cost:
            damping *= 10
            continue
        gain = (cost - new) / cost
        state, seen, cost, damping = trial, found, new, damping / 5
        if gain < CONVERGED:
            break
    return state


class Prior:
    """What is known before, and how well: poses, focal length and depths."""

    def __init__(self, points: Points, T_world_camera: Array, camera: Intrinsics, focal: bool) -> None:
        self.rho, self.rho_sigma = points.inverse_depth, depth_sigma(points)
        self.T, self.camera = T_world_camera, camera
        self.focal_weight = FOCAL_SIGMA**-2 if focal else FIXED
        self.pose_weight = np.tile(POSE_SIGMA**-2.0, (len(self.T), 1))

    def off(self, state: State) -> tuple[Array, float, Array]:
        """(M, 6), (), (P,): how far a state is from the prior, in the units of the steps."""
        T = inverse(self.T) @ state.T_world_camera
        turn = Rotation.from_matrix(T[:, :3, :3]).as_rotvec()
        poses = np.concatenate([turn, T[:, :3, 3] / state.unit], 1)
        return poses, float(np.log(state.camera.fx / self.camera.fx)), state.inverse_depth - self.rho

    def cost(self, state: State) -> float:
        poses, log_focal, rho = self.off(state)
        return float(
            (self.pose_weight * poses**2).sum() + self.focal_weight * log_focal**2 + ((rho / self.rho_sigma) ** 2).sum()
        )


def _step(matches: Matches, seen: Seen, state: State, prior: Prior, damping: float) -> tuple[Array, float, Array]:
    """Updates of poses (M, 6), log focal and inverse depths (P,)."""
    M, P, count = len(state.T_world_camera), len(state.inverse_depth), len(matches)
    poses_off, focal_off, rho_off = prior.off(state)
    root = np.sqrt(seen.weight)[:, None]
    r = (root * seen.residual_px).ravel()
    blocks = np.concatenate([seen.by_anchor, seen.by_frame, seen.by_log_focal[..., None]], 2) * root[..., None]
    anchor = matches.points.frame[matches.point]
    six = np.arange(6)
    columns = np.concatenate(
        [6 * anchor[:, None] + six, 6 * matches.frame[:, None] + six, np.full((count, 1), 6 * M)], 1
    )
    pointers = 13 * np.arange(2 * count + 1)
    J = sparse.csr_array(
        (blocks.ravel(), np.repeat(columns, 2, axis=0).ravel(), pointers), shape=(2 * count, 6 * M + 1)
    )
    J_rho = sparse.csr_array(
        ((root * seen.by_inverse_depth).ravel(), np.repeat(matches.point, 2), np.arange(2 * count + 1)),
        shape=(2 * count, P),
    )
    weight = np.append(prior.pose_weight.ravel(), prior.focal_weight)
    H = (J.T @ J).tocsr()
    diagonal = H.diagonal()
    H = H + sparse.diags_array(weight + damping * diagonal)
    g = J.T @ r + weight * np.append(poses_off.ravel(), focal_off)
    H_rho = np.asarray(J_rho.multiply(J_rho).sum(0)).ravel() * (1 + damping) + prior.rho_sigma**-2
    g_rho = J_rho.T @ r + rho_off / prior.rho_sigma**2
    W = (J.T @ J_rho).tocsr()  # (6 M + 1, P)
    S = H - W @ sparse.diags_array(1 / H_rho) @ W.T
    x = -splu(S.tocsc()).solve(g - W @ (g_rho / H_rho))
    rho = -(g_rho + W.T @ x) / H_rho
    return x[:-1].reshape(M, 6), float(x[-1]), rho


def residual_of_unused(matches: Matches, state: State) -> Array:
    """(O,) px that are left when nothing but the depths of these points is fitted to them."""
    rho, sigma = matches.points.inverse_depth, depth_sigma(matches.points)
    P = len(rho)
    state = replace(state, inverse_depth=rho)
    for _ in range(STEPS):
        seen = Seen.of(matches, state)
        w, d = seen.weight, seen.by_inverse_depth
        H = np.bincount(matches.point, w * (d**2).sum(1), P) + sigma**-2
        g = np.bincount(matches.point, w * (d * seen.residual_px).sum(1), P) + (state.inverse_depth - rho) / sigma**2
        state = replace(
            state, inverse_depth=np.maximum(state.inverse_depth - g / H, LEAST_SHRINK * state.inverse_depth)
        )
    return np.linalg.norm(Seen.of(matches, state).residual_px, axis=1)


def depth_sigma(points: Points) -> Array:
    """(P,) sigma of the inverse depths as priors."""
    return np.maximum(DEPTH_TRUST * points.sigma, LEAST_DEPTH_SHARE * points.inverse_depth)


def _rays(uv: Array, camera: Intrinsics) -> Array:
    return np.concatenate([normalised(uv, camera), np.ones((len(uv), 1))], 1)


def _cross(v: Array) -> Array:
    """(N, 3, 3) matrices of the cross product with v (N, 3)."""
    out = np.zeros((len(v), 3, 3))
    x, y, z = v.T
    out[:, 0, 1], out[:, 0, 2], out[:, 1, 2] = -z, y, -x
    out[:, 1, 0], out[:, 2, 0], out[:, 2, 1] = z, -y, x
    return out
