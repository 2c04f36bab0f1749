"""Scenes with meshes: rays through Embree (Open3D's RaycastingScene), on the CPU.

The solids of a scene are given to Embree as triangles too, so that one query finds the first surface, one finds
shadows, and one finds how much of the surroundings a point sees. Rooms stay out: they enclose the light.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training import solids
from training.assets import Asset

Float = NDArray[np.float32]
NOTHING = np.uint32(0xFFFFFFFF)
FACETS = 24  # of a cylinder
SMOOTH = 0.3  # an interpolated normal further than this cosine from its triangle's is a mistake of the model's


@dataclass(frozen=True, eq=False)
class Placed:
    """A mesh in a scene: asset coordinates scaled by `scale`, turned by `rotation` (3, 3), moved by `origin` (3,).

    rows (P,): which of the scene's materials replaces each part's own colours, -1 for none; tint (P, 3) multiplies
    the own ones.
    """

    asset: Asset
    rotation: NDArray[np.float64]
    origin: NDArray[np.float64]
    scale: NDArray[np.float64]
    rows: NDArray[np.int64]
    tint: Float

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Corners (3,) of its box along the world's axes, metres."""
        low, high = self.asset.vertices.min(0), self.asset.vertices.max(0)
        corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1).T * self.scale
        world = corners @ self.rotation.T + self.origin
        return world.min(0), world.max(0)


@dataclass(frozen=True, eq=False)
class MeshHit:
    """What the rays that met meshes (R,) saw: normal (3, R) unit, towards the eye; color (3, R) own linear colour; row
    (R,) material in place of it or -1; at (3, R) place in the model, metres, and flat (3, R) its normal there, for
    textures without coordinates of their own.
    """

    normal: Tensor
    color: Tensor
    row: Tensor
    at: Tensor
    flat: Tensor


class Tracer:
    """The triangles of a scene. Rays are (3, R) float32; lengths are in units of the ray's direction."""

    def __init__(
        self, kinds: NDArray[np.int64], centre: Float, half: Float, rotation: Float, meshes: Sequence[Placed]
    ) -> None:
        is_room = kinds == solids.ROOM
        parts = [_solid_triangles(*solid) for solid in zip(kinds, centre, half, rotation, strict=True)]
        shown = [parts[p] for p in np.flatnonzero(~is_room)]
        self._owner = np.repeat(np.flatnonzero(~is_room), [len(faces) for _, faces in shown])  # of solids' triangles
        self._meshes = _Joined.of(meshes) if meshes else None
        if self._meshes is not None:
            shown.append((self._meshes.vertices, self._meshes.faces))
        self._rays = _scene(shown)
        self._around = _scene([parts[p] for p in np.flatnonzero(is_room)])

    def nearest(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Along rays (3, R) from origin (3, 1 or R): t (R,), inf for none; solid (R,) or -1; mesh triangle (R,) or -1;
        and the place (R, 2) in it.
        """
        rays = torch.cat((origin.expand_as(direction), direction)).T.contiguous().numpy()
        answer = self._rays.cast_rays(_tensor(rays))
        triangle = answer["primitive_ids"].numpy().astype(np.int64)
        triangle[answer["geometry_ids"].numpy() == NOTHING] = -1
        count = len(self._owner)
        is_solid, is_mesh = (triangle >= 0) & (triangle < count), triangle >= count
        solid = np.full(len(triangle), -1)
        solid[is_solid] = self._owner[triangle[is_solid]]
        found = (answer["t_hit"].numpy(), solid, np.where(is_mesh, triangle - count, -1))
        return *(torch.from_numpy(a) for a in found), torch.from_numpy(answer["primitive_uvs"].numpy())  # type: ignore[return-value]

    def mesh_hit(self, triangle: Tensor, place: Tensor, direction: Tensor) -> MeshHit:
        """What rays of `direction` (3, R) see at mesh triangles (R,)."""
        assert self._meshes is not None
        return self._meshes.seen(triangle.numpy(), place.numpy(), direction.numpy())

    def blocked(self, point: Tensor, towards: Tensor, near: float = 0.0, rooms: bool = False) -> Tensor:
        """(R,): whether anything stands between points (3, R) and points + towards."""
        rays = _tensor(torch.cat((point, towards)).T.contiguous().numpy())
        hit = self._rays.test_occlusions(rays, tnear=near, tfar=1.0).numpy()
        if rooms:
            hit = hit | self._around.test_occlusions(rays, tnear=near, tfar=1.0).numpy()
        return torch.from_numpy(hit)


def _tensor(array: NDArray[Any]) -> Any:
    from open3d import core

    return core.Tensor.from_numpy(array)


def _scene(parts: Sequence[tuple[Float, NDArray[np.uint32]]]) -> Any:
    """A RaycastingScene of (vertices, faces) parts as ONE geometry, so that triangles are numbered through."""
    from open3d import t

    scene = t.geometry.RaycastingScene(nthreads=1)
    if parts:
        starts = np.cumsum([0] + [len(vertices) for vertices, _ in parts])
        faces = np.concatenate([f + np.uint32(n) for (_, f), n in zip(parts, starts, strict=False)])
        vertices = np.concatenate([v for v, _ in parts])
        scene.add_triangles(_tensor(vertices.astype(np.float32)), _tensor(faces.astype(np.uint32)))
    return scene


def _solid_triangles(kind: int, centre: Float, half: Float, rotation: Float) -> tuple[Float, NDArray[np.uint32]]:
    vertices, faces = _unit_triangles(int(kind))
    return np.asarray((vertices * half) @ rotation.T + centre, np.float32), faces


@cache
def _unit_triangles(kind: int) -> tuple[Float, NDArray[np.uint32]]:
    """The unit solid of a kind; round ones circumscribed about the mean radius."""
    import trimesh

    if kind == solids.ELLIPSOID:
        mesh = trimesh.creation.icosphere(subdivisions=3)
    elif kind == solids.CYLINDER:
        mesh = trimesh.creation.cylinder(1.0, 2.0, sections=FACETS)
        mesh.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
    else:
        mesh = trimesh.creation.box((2.0, 2.0, 2.0))
    return np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.uint32)


@dataclass(frozen=True, eq=False)
class _Joined:
    """All placed meshes as one, in the world: vertices, faces, and what their parts look like."""

    vertices: Float  # (V, 3) world
    local: Float  # (V, 3) in the model, metres
    normals: Float  # (V, 3) world
    local_normals: Float
    uv: Float
    faces: NDArray[np.uint32]  # (F, 3)
    part: NDArray[np.int64]  # (F,) into the tables below
    color: Float  # (P, 3)
    row: NDArray[np.int64]  # (P,)
    image: NDArray[np.int64]  # (P,) into images, or -1
    images: NDArray[np.uint8]  # (T, 3, S, S)

    @classmethod
    def of(cls, meshes: Sequence[Placed]) -> "_Joined":
        pieces = [_piece(mesh) for mesh in meshes]
        vertices = np.cumsum([0] + [len(p.vertices) for p in pieces])
        parts = np.cumsum([0] + [len(p.color) for p in pieces])
        images = np.cumsum([0] + [len(p.images) for p in pieces])
        moved = [
            replace(
                piece,
                faces=piece.faces + np.uint32(vertices[i]),
                part=piece.part + parts[i],
                image=np.where(piece.image >= 0, piece.image + images[i], -1),
            )
            for i, piece in enumerate(pieces)
        ]
        return cls(*(np.concatenate([getattr(p, name) for p in moved]) for name in cls.__dataclass_fields__))

    def seen(self, triangle: NDArray[np.int64], place: Float, direction: Float) -> MeshHit:
        corners = self.faces[triangle].astype(np.int64)  # (R, 3)
        share = np.stack((1 - place[:, 0] - place[:, 1], place[:, 0], place[:, 1]), 1)[..., None]  # (R, 3, 1)

        def blend(of_vertices: Float) -> Float:
            return np.asarray((of_vertices[corners] * share).sum(1), np.float32)

        a, b, c = (self.vertices[corners[:, i]] for i in range(3))
        flat = _unit(np.cross(b - a, c - a))
        normal = _unit(blend(self.normals))
        cosine = (normal * flat).sum(1, keepdims=True)
        normal = np.where(np.abs(cosine) < SMOOTH, flat, normal)
        away = (normal * direction.T).sum(1, keepdims=True) > 0
        normal = np.where(away, -normal, normal)
        part = self.part[triangle]
        color = self.color[part].copy()
        textured = self.image[part] >= 0
        color[textured] *= _texture(self.images, self.image[part[textured]], blend(self.uv)[textured])
        at = (normal, color, blend(self.local), blend(self.local_normals))
        n, rgb, local, local_normal = (torch.from_numpy(np.ascontiguousarray(x.T)) for x in at)
        return MeshHit(n, rgb, torch.from_numpy(self.row[part]), local, local_normal)


def _piece(mesh: Placed) -> _Joined:
    asset = mesh.asset
    local = (asset.vertices * mesh.scale).astype(np.float32)
    rotation = mesh.rotation.astype(np.float32)
    local_normals = _unit(asset.normals / mesh.scale.astype(np.float32))
    own = np.where(asset.image[:, None] >= 0, 1.0, asset.colors)
    return _Joined(
        vertices=(local @ rotation.T + mesh.origin).astype(np.float32),
        local=local,
        normals=local_normals @ rotation.T,
        local_normals=local_normals,
        uv=asset.uv,
        faces=asset.faces.astype(np.uint32),
        part=asset.part.astype(np.int64),
        color=(own * mesh.tint).astype(np.float32),
        row=mesh.rows,
        image=asset.image.astype(np.int64),
        images=asset.images,
    )


def _unit(vectors: NDArray[Any]) -> Float:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9), np.float32)


def _texture(images: NDArray[np.uint8], image: NDArray[np.int64], uv: Float) -> Float:
    """Linear RGB (R, 3) of repeating textures at uv (R, 2), bilinear; v grows upwards."""
    size = images.shape[-1]
    x, y = (uv[:, 0] % 1) * size - 0.5, ((-uv[:, 1]) % 1) * size - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - left)[:, None], (y - top)[:, None]

    def texel(dx: int, dy: int) -> Float:
        return images[image, :, (top + dy) % size, (left + dx) % size].astype(np.float32)

    upper = texel(0, 0) * (1 - fx) + texel(1, 0) * fx
    lower = texel(0, 1) * (1 - fx) + texel(1, 1) * fx
    return np.asarray(((upper * (1 - fy) + lower * fy) / 255) ** 2.2, np.float32)
