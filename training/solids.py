"""Rays against convex solids.

Every solid lives in its own unit frame (box: [-1, 1]^3; ellipsoid: unit ball; cylinder: unit disc in xz, y in [-1,
1]); a 3x3 matrix carries world directions into it, so one ray parameter t serves both frames. Since all are convex, a
ray meets each in one interval [near, far]; a `ROOM` is a box seen from inside, hit at `far`.
"""

import torch
from torch import Tensor

BOX, ELLIPSOID, CYLINDER, ROOM = 0, 1, 2, 3
NEAREST_M = 1e-3  # nothing nearer along a ray is seen


def _slab_interval(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Interval in the slabs |x_i| <= 1 of every given axis i (dimension 0)."""
    inverse = 1.0 / (direction + 1e-12)  # a ray along a face would give 0 * inf
    middle = -origin * inverse
    half = inverse.abs()
    return (middle - half).amax(0), (middle + half).amin(0)


def _ball_interval(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Interval in the unit ball (of as many axes as dimension 0 has); NaN, which compares false, for a miss."""
    a = direction.square().sum(0).clamp_min(1e-12)
    b = (origin * direction).sum(0)
    root = (b * b - a * (origin.square().sum(0) - 1.0)).sqrt()
    return (-b - root) / a, (-b + root) / a


def interval(kind: int, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Entry and exit (R,) of rays given in a solid's unit frame: origin (3, 1 or R), direction (3, R).

    No hit: not near < far.
    """
    if kind in (BOX, ROOM):
        return _slab_interval(origin, direction)
    if kind == ELLIPSOID:
        return _ball_interval(origin, direction)
    side = _ball_interval(origin[0::2], direction[0::2])
    caps = _slab_interval(origin[1:2], direction[1:2])
    return torch.maximum(side[0], caps[0]), torch.minimum(side[1], caps[1])


def surface(kind: int, near: Tensor, far: Tensor) -> Tensor:
    """t (R,) of the visible surface, inf where there is none.

    Only a room is solid from inside: cameras start in no solid.
    """
    t = far if kind == ROOM else near
    return torch.where((near < far) & (t > NEAREST_M), t, torch.inf)


def unit_normal(kinds: Tensor, point: Tensor) -> Tensor:
    """Outward normal (3, R) in the unit frame at surface points (3, R) of solids of kind (R,); not of unit length."""
    axis = torch.zeros_like(point).scatter_(0, point.abs().argmax(0, keepdim=True), 1.0)
    flat = axis * point.sign() * torch.where(kinds == ROOM, -1.0, 1.0)
    on_side = point[0::2].square().sum(0) > point[1].square()
    upright = point.new_tensor([[1.0], [0.0], [1.0]])
    cylinder = torch.where(on_side, point * upright, point * (1.0 - upright))
    curved = torch.where(kinds == ELLIPSOID, point, cylinder)
    return torch.where((kinds == BOX) | (kinds == ROOM), flat, curved)
