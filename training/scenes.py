"""Scenes of textured solids under one light, ray-cast with their z-depth: the synthetic truth of training, tests and
the example.

World: x right, y down, z forward at yaw 0, so the floor's normal is -y. Cameras as everywhere: x right, y down, z
forward.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training import solids, textures

Array = NDArray[np.float32]
SUN_REACH_M = 200.0


@dataclass(frozen=True, eq=False)
class Scene:
    """P solids, their materials and the light, as numpy; lengths in metres, colours linear RGB.

    kinds (P,); centre, half (P, 3): half sizes along the solid's own axes; rotation (P, 3, 3): R_world_solid;
    faces (P, 3): rows of `materials` for the sides, the face whose normal is -y (top) and the one whose normal is +y
    (bottom); light (4,): (x, y, z, 1) a lamp's place, or (x, y, z, 0) the direction towards the sun;
    sky (2, 3): zenith and horizon; fog_per_m: attenuation towards the horizon's colour; ambient: share of light
    without shadow.
    """

    kinds: NDArray[np.int64]
    centre: Array
    half: Array
    rotation: Array
    faces: NDArray[np.int64]
    materials: Array
    light: Array
    sky: Array
    fog_per_m: float
    ambient: float


@dataclass(frozen=True, eq=False)
class _Stage:
    """A scene as tensors on one device."""

    kinds: Tensor  # (P,)
    centre: Tensor  # (P, 3)
    half: Tensor  # (P, 3)
    rotation: Tensor  # (P, 3, 3)
    faces: Tensor  # (P, 3)
    materials: Tensor  # (M, textures.COLUMNS)
    light: Tensor  # (4,)
    sky: Tensor  # (2, 3)
    fog_per_m: Tensor
    ambient: Tensor

    @classmethod
    def of(cls, scene: Scene, device: torch.device | str) -> "_Stage":
        return cls(**{f.name: torch.as_tensor(getattr(scene, f.name), device=device) for f in fields(scene)})

    @property
    def unit_from_world(self) -> Tensor:
        """(P, 3, 3): world directions into unit frames."""
        return self.rotation.transpose(1, 2) / self.half[:, :, None]


def cast(
    scene: Scene,
    T_world_camera: Any,
    K: Any,
    width: int,
    height: int,
    device: torch.device | str = "cpu",
    shadow_stride: int = 1,
) -> tuple[Tensor, Tensor]:
    """Look at a scene from one camera: T_world_camera (4, 4), K (3, 3) in pixels.

    Returns linear rgb (3, H, W), before exposure, and z-depth (1, H, W) metres, inf for sky. A `shadow_stride` of 2
    finds shadows on every other pixel only and blends them, which is softer and four times faster.
    """
    stage = _Stage.of(scene, device)
    pose = torch.as_tensor(np.asarray(T_world_camera), dtype=torch.float32, device=device)
    camera = torch.as_tensor(np.asarray(K), dtype=torch.float32, device=device)
    rays = _camera_rays(camera, width, height)  # (3, H, W)
    direction = (pose[:3, :3] @ rays.flatten(1)).reshape(rays.shape)
    depth, index = _nearest(stage, pose, camera, direction)
    rgb = _shade(stage, pose[:3, 3], direction, depth, index, camera[0, 0], shadow_stride)
    return _through_air(stage, rgb, direction, depth), depth[None]


def _camera_rays(K: Tensor, width: int, height: int) -> Tensor:
    """(3, H, W) directions in the camera with z = 1, so that the ray parameter IS the z-depth."""
    v, u = torch.meshgrid(
        torch.arange(height, device=K.device) + 0.5, torch.arange(width, device=K.device) + 0.5, indexing="ij"
    )
    return torch.stack(((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], torch.ones_like(u)))


def _windows(stage: _Stage, pose: Tensor, K: Tensor, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Pixels (left, right, top, bottom) that can see each solid; empty when right <= left."""
    corners = torch.tensor(list(product((-1.0, 1.0), repeat=3)), device=pose.device)  # (8, 3)
    world = stage.centre[:, None] + (corners * stage.half[:, None]) @ stage.rotation.transpose(1, 2)  # (P, 8, 3)
    x, y, z = ((world - pose[:3, 3]) @ pose[:3, :3]).unbind(-1)  # (P, 8) in the camera
    u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
    size = torch.tensor([width, width, height, height], device=pose.device)
    ends = torch.stack((u.amin(1).floor(), u.amax(1).ceil(), v.amin(1).floor(), v.amax(1).ceil()), 1)
    ends = torch.where(
        (z.amin(1) > 0.05)[:, None], ends, size * ends.new_tensor([0, 1, 0, 1])
    )  # reaches behind the camera
    ends = torch.where((z.amax(1) > 0)[:, None], ends, 0.0)
    return [tuple(row) for row in torch.minimum(ends.clamp_min(0), size).long().tolist()]


def _nearest(stage: _Stage, pose: Tensor, K: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """z-depth (H, W), inf for none, and the solid's index (H, W) of the first surface along the rays (3, H, W)."""
    height, width = direction.shape[1:]
    depth = torch.full((height, width), torch.inf, device=direction.device)
    index = torch.zeros((height, width), dtype=torch.long, device=direction.device)
    origins = stage.unit_from_world @ (pose[:3, 3] - stage.centre)[..., None]  # (P, 3, 1)
    into_unit = stage.unit_from_world
    for p, (left, right, top, bottom) in enumerate(_windows(stage, pose, K, width, height)):
        if right <= left or bottom <= top:
            continue
        window = (slice(top, bottom), slice(left, right))
        rays = into_unit[p] @ direction[(slice(None), *window)].reshape(3, -1)
        kind = int(stage.kinds[p])
        t = solids.surface(kind, *solids.interval(kind, origins[p], rays)).view(bottom - top, right - left)
        closer = t < depth[window]
        depth[window] = torch.where(closer, t, depth[window])
        index[window] = torch.where(closer, p, index[window])
    return depth, index


def _shadow(stage: _Stage, point: Tensor, to_light: Tensor) -> Tensor:
    """Whether (R,) any solid stands between points (3, R) and the light; rooms cast no shadow, they hold it."""
    blocked = torch.zeros_like(point[0], dtype=torch.bool)
    into_unit = stage.unit_from_world
    low = torch.minimum(point, point + to_light).amin(1)
    high = torch.maximum(point, point + to_light).amax(1)
    radius = (stage.rotation.abs() @ stage.half[..., None])[
        ..., 0
    ]  # (P, 3) half size of the box along the world's axes
    between = ((stage.centre + radius > low) & (stage.centre - radius < high)).all(1) & (stage.kinds != solids.ROOM)
    for p in between.nonzero()[:, 0].tolist():
        near, far = solids.interval(
            int(stage.kinds[p]), into_unit[p] @ (point - stage.centre[p, :, None]), into_unit[p] @ to_light
        )
        blocked |= (near < far) & (near < 1.0) & (far > 0.0)
    return blocked


def _soft_shadow(stage: _Stage, point: Tensor, to_light: Tensor, stride: int) -> Tensor:
    """Share of light (H, W) that reaches points (3, H, W), found on every `stride`-th pixel and blended."""
    few, way = point[:, ::stride, ::stride], to_light[:, ::stride, ::stride]
    lit = (~_shadow(stage, few.flatten(1), way.flatten(1))).float().reshape(few.shape[1:])
    if stride == 1:
        return lit
    return functional.interpolate(lit[None, None], size=point.shape[1:], mode="bilinear", align_corners=False)[0, 0]


def _shade(
    stage: _Stage, origin: Tensor, direction: Tensor, depth: Tensor, index: Tensor, focal_px: Tensor, shadow_stride: int
) -> Tensor:
    """(3, H, W) light leaving the hit points towards the camera; black for sky."""
    shape = depth.shape
    hit = depth.isfinite()
    point = origin[:, None, None] + direction * torch.where(hit, depth, 1.0)
    flat_index = index.flatten()
    kinds = stage.kinds[flat_index]
    unit_from_world = stage.unit_from_world[flat_index]  # (R, 3, 3)
    at = (unit_from_world @ (point.flatten(1).T - stage.centre[flat_index])[..., None])[
        ..., 0
    ].T  # (3, R) in the unit frame
    local_normal = solids.unit_normal(kinds, at)
    normal = (unit_from_world.transpose(1, 2) @ local_normal.T[..., None])[..., 0].T
    normal = (normal / _length(normal).clamp_min(1e-9)).reshape(3, *shape)

    slant = (normal * direction).sum(0).abs() / _length(direction)
    footprint_m = torch.where(hit, depth, 0.0) / focal_px / slant.clamp_min(0.05)
    rows = _material_rows(stage, flat_index, local_normal, kinds)
    u, v = _surface_coordinates(at * stage.half[flat_index].T, local_normal.abs(), kinds, stage.half[flat_index, 0])
    color = textures.albedo(rows, u, v, footprint_m.flatten()).reshape(3, *shape)

    to_light = (
        stage.light[:3, None, None] - point
        if stage.light[3] > 0
        else stage.light[:3, None, None].expand_as(point) * SUN_REACH_M
    )
    lit = _soft_shadow(stage, point + normal * 2e-3, to_light, shadow_stride)
    return torch.where(hit, color * _light(stage, to_light, normal, direction, lit, rows.reshape(-1, *shape)), 0.0)


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(0).sqrt()


def _light(stage: _Stage, to_light: Tensor, normal: Tensor, direction: Tensor, lit: Tensor, rows: Tensor) -> Tensor:
    """(H, W) light on the surface: ambient (brighter from above) + Lambert with falloff + a soft highlight + its own
    glow.
    """
    distance = _length(to_light)
    towards = to_light / distance.clamp_min(1e-6)
    lambert = (normal * towards).sum(0).clamp_min(0.0)
    falloff = 6.0 / (2.0 + distance.square()) if stage.light[3] > 0 else 1.0
    view = direction / _length(direction)
    mirrored = view - 2 * (view * normal).sum(0) * normal
    highlight = rows[textures.GLOSS] * (mirrored * towards).sum(0).clamp_min(0.0).pow(20)
    sky_share = 0.75 - 0.25 * normal[1] + 0.1 * normal[0]
    light = stage.ambient * sky_share + (1 - stage.ambient) * 1.2 * (lambert + highlight) * falloff * lit
    return light + (1.0 - light) * rows[textures.GLOW]


def _material_rows(stage: _Stage, index: Tensor, local_normal: Tensor, kinds: Tensor) -> Tensor:
    """(COLUMNS, R) material of every hit: the solid's side, top or bottom, chosen by the normal in its own frame."""
    level = (local_normal[1].abs() > 0.5) & (kinds != solids.ELLIPSOID)
    face = torch.where(level, torch.where(local_normal[1] < 0, 1, 2), 0)
    return stage.materials[stage.faces[index, face]].T


def _surface_coordinates(at_m: Tensor, normal: Tensor, kinds: Tensor, radius_m: Tensor) -> tuple[Tensor, Tensor]:
    """Texture coordinates (R,) in metres:
    the two axes along a box's face, or angle and height around a curved solid.
    """
    x, y, z = at_m
    along_x, along_y = normal[0] > 0.5, normal[1] > 0.5
    curved = ((kinds == solids.CYLINDER) & ~along_y) | (kinds == solids.ELLIPSOID)
    u = torch.where(curved, torch.atan2(z, x) * radius_m, torch.where(along_x, z, x))
    return u, torch.where(along_y & ~curved, z, y)


def _through_air(stage: _Stage, rgb: Tensor, direction: Tensor, depth: Tensor) -> Tensor:
    """(3, H, W) after fog; the sky is a gradient from the horizon to the zenith, with clouds."""
    unit = direction / _length(direction)
    up = (-unit[1]).clamp(0.0, 1.0)
    zenith, horizon = stage.sky[:, :, None, None]
    clouds = textures.noise(*(unit[0::2] / (up + 0.2) * 0.15).flatten(1))[2].reshape(up.shape)
    sky = horizon + (zenith - horizon) * up.sqrt()
    sky = sky + (1.0 - sky) * 0.8 * (clouds - 0.55).clamp_min(0.0)
    clear = torch.exp(-stage.fog_per_m * depth)
    return torch.where(depth.isfinite(), rgb * clear + horizon * (1 - clear), sky)


def develop(rgb: Tensor, exposure: float, white_balance: Iterable[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """Linear (..., 3, H, W) to sRGB 0..1."""
    balance = torch.tensor(list(white_balance), dtype=torch.float32, device=rgb.device)[:, None, None]
    linear = (rgb * balance * exposure).clamp(0.0, 1.0)
    return torch.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-6).pow(1 / 2.4) - 0.055)


def render(
    scene: Scene,
    T_world_camera: Any,
    K: Any,
    width: int,
    height: int,
    exposure: float = 1.0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """One fixed scene from N cameras: sRGB (N, 3, H, W) in 0..1 and z-depth (N, 1, H, W) metres, inf for sky.

    T_world_camera (N, 4, 4), K (3, 3). Textures are anchored to the surfaces and exposure is fixed: views agree on
    colours.
    """
    views = [cast(scene, pose, K, width, height, device) for pose in np.asarray(T_world_camera)]
    return develop(torch.stack([v[0] for v in views]), exposure), torch.stack([v[1] for v in views])
