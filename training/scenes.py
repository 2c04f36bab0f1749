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
from training.tracer import MeshHit, Placed, Tracer

Array = NDArray[np.float32]
SUN_REACH_M = 200.0
GREY = 0.22  # linear mean that exposure aims at
LAMP_RADIUS_M = 0.12  # shadows of traced scenes are as soft as lamps of this size make them
SUN_RADIUS = 0.01
AROUND_M, AROUND_RAYS = 1.2, 6  # what stands nearer than this takes light from the surroundings away
AROUND_DEPTH = 0.8  # the most it takes
MIRROR_GLOSS = 0.15  # traced scenes mirror in what is glossier
BUMP = 0.9  # of the rough materials: how far noise turns their normals


@dataclass(frozen=True, eq=False)
class Scene:
    """P solids, their materials and the light, as numpy; lengths in metres, colours linear RGB.

    kinds (P,); centre, half (P, 3): half sizes along the solid's own axes; rotation (P, 3, 3): R_world_solid;
    faces (P, 3): rows of `materials` for the sides, the face whose normal is -y (top) and the one whose normal is +y
    (bottom); light (4,): (x, y, z, 1) a lamp's place, or (x, y, z, 0) the direction towards the sun;
    sky (2, 3): zenith and horizon; fog_per_m: attenuation towards the horizon's colour; ambient: share of light
    without shadow; meshes: what solids cannot show, traced on the CPU.
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
    meshes: tuple[Placed, ...] = ()


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
        return cls(**{f.name: torch.as_tensor(getattr(scene, f.name), device=device) for f in fields(cls)})

    @property
    def unit_from_world(self) -> Tensor:
        """(P, 3, 3): world directions into unit frames."""
        return self.rotation.transpose(1, 2) / self.half[:, :, None]


@dataclass(frozen=True, eq=False)
class _Hits:
    """The first surface along every ray: z-depth (H, W), inf for none; the solid (H, W), 0 where it is none; and what
    is seen of meshes at the flagged (H, W) pixels, in row order.
    """

    depth: Tensor
    solid: Tensor
    on_mesh: Tensor
    mesh: MeshHit | None


def tracer_of(scene: Scene) -> Tracer:
    """What `cast` needs for a scene with meshes; made once, it serves all views of the scene."""
    return Tracer(scene.kinds, scene.centre, scene.half, scene.rotation, scene.meshes)


def cast(
    scene: Scene,
    T_world_camera: Any,
    K: Any,
    width: int,
    height: int,
    device: torch.device | str = "cpu",
    shadow_stride: int = 1,
    tracer: Tracer | None = None,
) -> tuple[Tensor, Tensor]:
    """Look at a scene from one camera: T_world_camera (4, 4), K (3, 3) in pixels.

    Returns linear rgb (3, H, W), before exposure, and z-depth (1, H, W) metres, inf for sky. A `shadow_stride` of 2
    finds shadows on every other pixel only and blends them, which is softer and four times faster. With a `tracer`,
    which a scene with meshes always gets, shadows are soft and corners dark; round solids are triangles then.
    """
    if tracer is None and scene.meshes:
        tracer = tracer_of(scene)
    stage = _Stage.of(scene, "cpu" if tracer is not None else device)
    pose = torch.as_tensor(np.asarray(T_world_camera), dtype=torch.float32, device=stage.centre.device)
    camera = torch.as_tensor(np.asarray(K), dtype=torch.float32, device=pose.device)
    direction = _world_rays(pose, camera, width, height)
    eye = pose[:3, 3, None, None]
    hits = _nearest(stage, pose, camera, direction) if tracer is None else _traced(stage, eye, direction, tracer)
    rgb = _shade(stage, eye, direction, hits, camera[0, 0], shadow_stride, tracer)
    return _through_air(stage, rgb, direction, hits.depth).to(device), hits.depth[None].to(device)


def rays(T_world_camera: Any, K: Any, width: int, height: int) -> Tensor:
    """(3, H, W) directions in the world of a camera's pixels, z = 1 in the camera: along them t IS the z-depth."""
    pose, camera = (torch.as_tensor(np.asarray(m), dtype=torch.float32) for m in (T_world_camera, K))
    return _world_rays(pose, camera, width, height)


def depth_along(scene: Scene, T_world_camera: Any, direction: Tensor, tracer: Tracer) -> Tensor:
    """z-depth (H, W) metres, inf for sky, along `rays`; no light, no colour."""
    pose = torch.as_tensor(np.asarray(T_world_camera), dtype=torch.float32)
    return _traced(_Stage.of(scene, "cpu"), pose[:3, 3, None, None], direction, tracer).depth


def _world_rays(pose: Tensor, K: Tensor, width: int, height: int) -> Tensor:
    rays = _camera_rays(K, width, height)
    return (pose[:3, :3] @ rays.flatten(1)).reshape(rays.shape)


def _camera_rays(K: Tensor, width: int, height: int) -> Tensor:
    """(3, H, W) directions in the camera with z = 1."""
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


def _nearest(stage: _Stage, pose: Tensor, K: Tensor, direction: Tensor) -> _Hits:
    """The first solid along the rays (3, H, W)."""
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
    return _Hits(depth, index, torch.zeros_like(index, dtype=torch.bool), None)


def _traced(stage: _Stage, origin: Tensor, direction: Tensor, tracer: Tracer) -> _Hits:
    """The first solid or mesh along rays (3, H, W) from origin (3, 1, 1) or (3, H, W); rooms by their formula, the
    others by their triangles.
    """
    shape, rays, origin = direction.shape[1:], direction.flatten(1), origin.flatten(1)
    depth, solid, triangle, place = tracer.nearest(origin, rays)
    for p in (stage.kinds == solids.ROOM).nonzero()[:, 0].tolist():
        inside = stage.unit_from_world[p] @ (origin - stage.centre[p, :, None])
        t = solids.surface(solids.ROOM, *solids.interval(solids.ROOM, inside, stage.unit_from_world[p] @ rays))
        nearer = t < depth
        depth, solid = torch.where(nearer, t, depth), torch.where(nearer, p, solid)
        triangle = torch.where(nearer, -1, triangle)
    on_mesh = triangle >= 0
    mesh = tracer.mesh_hit(triangle[on_mesh], place[on_mesh], rays[:, on_mesh]) if bool(on_mesh.any()) else None
    return _Hits(depth.reshape(shape), solid.clamp_min(0).reshape(shape), on_mesh.reshape(shape), mesh)


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


@dataclass(frozen=True, eq=False)
class _Surface:
    """What the rays met: point (3, H, W), unit normal (3, H, W), albedo (3, H, W), and gloss and glow (H, W)."""

    point: Tensor
    normal: Tensor
    color: Tensor
    gloss: Tensor
    glow: Tensor


def _shade(
    stage: _Stage,
    origin: Tensor,
    direction: Tensor,
    hits: _Hits,
    focal_px: Tensor,
    shadow_stride: int,
    tracer: Tracer | None,
) -> Tensor:
    """(3, H, W) light leaving the hit points towards the camera; black for sky."""
    hit = hits.depth.isfinite()
    surface = _surface(stage, origin, direction, hits, focal_px, bumpy=tracer is not None)
    to_light = (
        stage.light[:3, None, None] - surface.point
        if stage.light[3] > 0
        else stage.light[:3, None, None].expand_as(surface.point) * SUN_REACH_M
    )
    if tracer is None:
        lit = _soft_shadow(stage, surface.point + surface.normal * 2e-3, to_light, shadow_stride)
        open_ = torch.ones_like(lit)
    else:
        lit, open_ = _traced_light(stage, surface, to_light, tracer)
    rgb = surface.color * _light(stage, to_light, surface, direction, lit, open_)
    if tracer is not None:
        rgb = _mirrored(stage, rgb, surface, direction, hit, focal_px, tracer)
    return torch.where(hit, rgb, 0.0)


def _mirrored(
    stage: _Stage, rgb: Tensor, surface: _Surface, direction: Tensor, hit: Tensor, focal_px: Tensor, tracer: Tracer
) -> Tensor:
    """rgb (3, H, W) with what glossy surfaces mirror, the more the flatter they are looked at (Schlick 1994, eq. 15,
    from `gloss` / 2 instead of a refractive index); what is seen in a mirror is lit without shadows.
    """
    flag = hit & (surface.gloss > MIRROR_GLOSS)
    if not bool(flag.any()):
        return rgb
    normal, view = surface.normal[:, flag], direction[:, flag] / _length(direction[:, flag])
    cosine = (normal * view).sum(0)
    away = (view - 2 * cosine * normal)[:, None]  # (3, 1, R): an image of one row
    start = (surface.point[:, flag] + normal * 3e-3)[:, None]
    hits = _traced(stage, start, away, tracer)
    seen = _surface(stage, start, away, hits, focal_px)
    to_light = stage.light[:3, None, None] - seen.point * (stage.light[3] > 0)
    everywhere = torch.ones_like(seen.gloss)
    image = seen.color * _light(stage, to_light, seen, away, everywhere, everywhere)
    image = _through_air(stage, torch.where(hits.depth.isfinite(), image, 0.0), away, hits.depth)[:, 0]
    least = surface.gloss[flag] / 2
    share = least + (1 - least) * (1 - cosine.abs()).pow(5) * surface.gloss[flag]
    out = rgb.clone()
    out[:, flag] = rgb[:, flag] * (1 - share) + image * share
    return out


def _surface(
    stage: _Stage, origin: Tensor, direction: Tensor, hits: _Hits, focal_px: Tensor, bumpy: bool = False
) -> _Surface:
    """What rays (3, H, W) from origin (3, 1, 1) or (3, H, W) met; `bumpy`: rough materials have uneven normals."""
    shape = hits.depth.shape
    hit = hits.depth.isfinite()
    point = origin + direction * torch.where(hit, hits.depth, 1.0)
    flat_index = hits.solid.flatten()
    kinds = stage.kinds[flat_index]
    unit_from_world = stage.unit_from_world[flat_index]  # (R, 3, 3)
    at = (unit_from_world @ (point.flatten(1).T - stage.centre[flat_index])[..., None])[
        ..., 0
    ].T  # (3, R) in the unit frame
    local_normal = solids.unit_normal(kinds, at)
    normal = (unit_from_world.transpose(1, 2) @ local_normal.T[..., None])[..., 0].T
    normal = normal / _length(normal).clamp_min(1e-9)
    rows = _material_rows(stage, flat_index, local_normal, kinds)
    u, v = _surface_coordinates(at * stage.half[flat_index].T, local_normal.abs(), kinds, stage.half[flat_index, 0])
    on_mesh = hits.on_mesh.flatten()
    if hits.mesh is not None:
        normal[:, on_mesh] = hits.mesh.normal
        rows[:, on_mesh] = stage.materials[hits.mesh.row].T  # the last one where there is none: its gloss will do
        box = torch.zeros_like(hits.mesh.row)  # as if painted from the nearest of three sides
        side = torch.zeros_like(hits.mesh.flat).scatter_(0, hits.mesh.flat.abs().argmax(0, keepdim=True), 1.0)
        u[on_mesh], v[on_mesh] = _surface_coordinates(hits.mesh.at, side, box, box)
    if bumpy:
        fine = 4.0 / rows[textures.GRAIN_SCALE_M]
        normal = normal + BUMP * rows[textures.GRAIN] * (2 * textures.noise(u * fine, v * fine)[:3] - 1)
        normal = normal / _length(normal).clamp_min(1e-9)
    normal = normal.reshape(3, *shape)
    slant = (normal * direction).sum(0).abs() / _length(direction)
    footprint_m = torch.where(hit, hits.depth, 0.0) / focal_px / slant.clamp_min(0.05)
    color = textures.albedo(rows, u, v, footprint_m.flatten())
    glow = rows[textures.GLOW].clone()
    if hits.mesh is not None:
        color[:, on_mesh] = torch.where(hits.mesh.row >= 0, color[:, on_mesh], hits.mesh.color.clamp(0.0, 1.0))
        glow[on_mesh] = torch.where(hits.mesh.row >= 0, glow[on_mesh], 0.0)
    return _Surface(point, normal, color.reshape(3, *shape), rows[textures.GLOSS].reshape(shape), glow.reshape(shape))


def _traced_light(stage: _Stage, surface: _Surface, to_light: Tensor, tracer: Tracer) -> tuple[Tensor, Tensor]:
    """Shares (H, W) of the light, and of the surroundings, that reach the surface; found on every other pixel with
    random rays, the same in every view, and blended.
    """
    rng = torch.Generator().manual_seed(0)
    point = (surface.point + surface.normal * 3e-3)[:, ::2, ::2]
    size, around = point.shape[1:], surface.normal[:, ::2, ::2].flatten(1)
    start, way = point.flatten(1), to_light[:, ::2, ::2].flatten(1)
    radius = LAMP_RADIUS_M if stage.light[3] > 0 else SUN_RADIUS * SUN_REACH_M
    lit = torch.zeros(start.shape[1])
    for _ in range(2):
        lit += 0.5 * ~tracer.blocked(start, way + radius * torch.randn(way.shape, generator=rng))
    open_ = torch.zeros_like(lit)
    for _ in range(AROUND_RAYS):
        ray = torch.randn(start.shape, generator=rng)
        ray = around * 1.05 + ray / _length(ray)  # cosine-distributed about the normal
        reach = AROUND_M * torch.rand(ray.shape[1], generator=rng).sqrt()
        open_ += (~tracer.blocked(start, ray / _length(ray) * reach, rooms=True)).float() / AROUND_RAYS
    both = torch.stack((lit, 1 - AROUND_DEPTH * (1 - open_))).reshape(1, 2, *size)
    both = functional.avg_pool2d(functional.pad(both, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    both = functional.interpolate(both, size=surface.point.shape[1:], mode="bilinear", align_corners=False)[0]
    return both[0], both[1]


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(0).sqrt()


def _light(stage: _Stage, to_light: Tensor, surface: _Surface, direction: Tensor, lit: Tensor, open_: Tensor) -> Tensor:
    """(H, W) light on the surface: ambient (brighter from above) + Lambert with falloff + a soft highlight + its own
    glow.
    """
    normal, distance = surface.normal, _length(to_light)
    towards = to_light / distance.clamp_min(1e-6)
    lambert = (normal * towards).sum(0).clamp_min(0.0)
    falloff = 6.0 / (2.0 + distance.square()) if stage.light[3] > 0 else 1.0
    view = direction / _length(direction)
    mirrored = view - 2 * (view * normal).sum(0) * normal
    highlight = surface.gloss * (mirrored * towards).sum(0).clamp_min(0.0).pow(20)
    sky_share = 0.75 - 0.25 * normal[1] + 0.1 * normal[0]
    light = stage.ambient * sky_share * open_ + (1 - stage.ambient) * 1.2 * (lambert + highlight) * falloff * lit
    return light + (1.0 - light) * surface.glow


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


def photographed(rgb: Tensor, rng: np.random.Generator) -> Tensor:
    """Linear (3, H, W) to sRGB uint8, exposed and white-balanced as by chance: a camera's automatic errs."""
    exposure = GREY / float(rgb.mean().clamp_min(0.02)) * np.exp(rng.normal(0, 0.45))
    return (develop(rgb, exposure, np.exp(rng.normal(0, 0.08, 3))) * 255).round().to(torch.uint8)


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
