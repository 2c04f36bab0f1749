"""One Gauss-Newton problem for a stretch of frames: the terms, their analytic Jacobians, and the normal equations.

Unknowns of frame i: theta_i = (log scale, shift, field nodes); log z_i(p) as in `grid`. Minimised, robustly where it
says so:

    cues        (log z_i(p) - log z_cue) / sigma                                     Huber, then Tukey
    links       (log of i's depth moved into j - log z_j) / spread                 Huber, then Tukey
    smoothness  (theta_i - theta_i+1) / sigma                                        weak: flicker is not smooth
    field       differences of adjacent nodes, and the nodes themselves, near zero

The gradient of a link by scales and shifts is taken at the depth half-way between its two frames, as far as they
differ by noise. Taken at each frame's own depth, its noise would speak for less contrast (regression dilution), and
exponentially so along a chain of links away from the last cue; half-way, the noise of two like frames cancels. How much
of a residual is noise is seen from sample to sample; of the rest, errors smooth over the image, half counts too.

Samples a few cells apart err alike, so a link counts as `independent` samples, however many it has; without that, the
links would outvote every cue and the covariances would claim too much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..types import Array, Domain
from .blocks import BlockSystem
from .field import differences
from .grid import Float32, SampleGrid, log_depth, slopes
from .links import Residuals, Surface
from .robust import huber, mad, tukey

Pair = tuple[int, int]
Link = Callable[[int, int, Surface, Surface, float, int], Residuals | None]
"""link(i, j, surface_i, surface_j, hidden, every): what frames i and j see in common, from every n-th sample of i;
None when nothing ties them."""

LEAST_NOISE = 0.5  # share of a link's residuals that at least counts as noise
LEAST_SAMPLES = 20  # a link of fewer says nothing
LEAST_Y = 0.02  # a shifted value under this share of the clip's typical one has no usable depth
THIN = 7  # H is made of every 7th residual: 30 unknowns need no more, and g has them all


@dataclass(frozen=True)
class JointSettings:
    """How strongly each term speaks. Standard deviations of log depth unless said otherwise."""

    samples: int = 100  # along the longer side of a frame
    field_columns: int = 6  # nodes along the longer side; fewer than 2: no field
    dilations: tuple[int, ...] = (1, 10, 25)  # frames a link spans (RollingDepth, arXiv 2411.19189, uses these three)
    independent: float = 100.0  # samples of a link that err independently
    link_floor: float = 0.01  # spread of a link is never taken to be less
    cue_floor: float = 0.03  # a cue is never trusted further: the coarse field is not meant to follow detail
    scale_step: float = 1.0  # of log scale, and of the shift as a share of a typical y, from frame to frame
    node_step: float = 0.05  # of a node from frame to frame
    node_sigma: float = 0.5  # of a node
    node_difference: float = 0.2  # between adjacent nodes


@dataclass(frozen=True, eq=False)
class CueRows:
    """M of a frame's cues ready for use: normalised value v (M,), log depth (M,), sigma (M,) of it, pixels uv (M, 2).

    share: how many cues each stands for.
    """

    v: Float32
    log_z: Float32
    sigma: Float32
    uv: Float32
    share: float


@dataclass(frozen=True, eq=False)
class Stretch:
    """T consecutive frames of one scene: normalised values (T, N), cues by frame, links, and their common domain.

    `values` may be any sequence of (N,) arrays, so that a long clip need not be in memory.
    """

    values: Sequence[Float32] | Float32
    cues: Mapping[int, CueRows]
    link: Link
    grid: SampleGrid
    domain: Domain
    settings: JointSettings
    y_unit: float = 1.0  # a typical y = scale * v + shift; 1 in log depth

    def __len__(self) -> int:
        return len(self.values)

    @property
    def block_frames(self) -> int:
        """Frames a block: the longest link."""
        return max(min(max(self.settings.dilations), len(self)), 1)

    def block_sizes(self) -> list[int]:
        p, D = self.grid.unknowns, self.block_frames
        return [p * min(D, len(self) - start) for start in range(0, len(self), D)]

    def pairs(self) -> list[Pair]:
        """(i, j), i < j, of every link."""
        T = len(self)
        return [(i, i + d) for i in range(T) for d in self.settings.dilations if i + d < T]

    def surface(self, position: int, theta: Array) -> Surface:
        """The frame's log depth on the grid at theta (p,)."""
        log_z = log_depth(self.values[position], theta, self.domain, self.least_y)
        return Surface.of(log_z + self.grid.basis @ theta[2:].astype(np.float32), self.grid)

    @property
    def least_y(self) -> float:
        return LEAST_Y * self.y_unit

    @cached_property
    def field_prior(self) -> Array:
        """(R*C, R*C) precision of the field's smoothness and of its nodes."""
        nodes, settings = self.grid.nodes, self.settings
        return differences(nodes) / settings.node_difference**2 + np.eye(nodes[0] * nodes[1]) / settings.node_sigma**2

    def part(self, first: int, last: int) -> Stretch:
        """Frames first..last-1 as a stretch of their own."""
        if (first, last) == (0, len(self)):
            return self
        return replace(
            self,
            values=self.values[first:last],
            cues={i - first: c for i, c in self.cues.items() if first <= i < last},
            link=lambda i, j, a, b, hidden, every: self.link(i + first, j + first, a, b, hidden, every),
        )

    def jacobian(self, position: int, theta: Array, samples: NDArray[np.intp]) -> Float32:
        """(M, p) derivative of the frame's log depth at some samples that have one, by the frame's unknowns."""
        return self._rows(self.values[position][samples], self.grid.basis[samples], theta)

    def _rows(self, v: Float32, basis: Float32, theta: Array) -> Float32:
        rows = np.empty((len(v), self.grid.unknowns), np.float32)
        rows[:, 0], rows[:, 1] = slopes(v, theta, self.domain)
        rows[:, 2:] = basis
        return rows


@dataclass(frozen=True, eq=False)
class _LinkTerm:
    pair: Pair
    cross: Array  # (p, p)
    source_weight: Float32  # (N,) of J_i^T W J_i
    source_right: Float32  # (N,)
    target_weight: Float32
    target_right: Float32
    source_pull: Array  # (2,) what enters g for scale and shift
    target_pull: Array
    spread: float


def assemble(
    stretch: Stretch, theta: Array, spread: float, redescending: bool, every: int = 1, before: int | None = None
) -> tuple[BlockSystem, Array]:
    """Normal equations H dx = g at theta (T, p), and the robust spreads (P,) of the links.

    spread: the links' common standard deviation. redescending: Tukey's weights for links (Huber's while the frames are
    still far off). every: link only every n-th sample. before: only terms that touch a frame before this one.
    """
    T, N = len(stretch), len(stretch.grid)
    system = BlockSystem.zeros(stretch.block_sizes())
    weight, right = np.zeros((T, N), np.float32), np.zeros((T, N), np.float32)
    pull = np.zeros((T, 2))
    pairs = [pair for pair in stretch.pairs() if before is None or pair[0] < before]
    spreads: list[float] = []
    for term in _link_terms(stretch, theta, pairs, spread, redescending, every):
        i, j = term.pair
        weight[i] += term.source_weight
        weight[j] += term.target_weight
        right[i] += term.source_right
        right[j] += term.target_right
        pull[i] += term.source_pull
        pull[j] += term.target_pull
        _add(system, stretch, i, j, term.cross)
        spreads.append(term.spread)
    for i in range(T):
        own = before is None or i < before
        H, g = _frame_terms(stretch, i, theta[i], weight[i], right[i], own, redescending)
        g[:2] += pull[i]
        _add(system, stretch, i, i, H, g)
    _add_smoothness(system, stretch, theta, before)
    return system, np.array(spreads)


def _frame_terms(
    stretch: Stretch, i: int, theta: Array, weight: Float32, right: Float32, own: bool, redescending: bool
) -> tuple[Array, Array]:
    """(H, g) of what links add to frame i's diagonal and, with `own`, of its cues and its field's prior."""
    counted = np.flatnonzero(weight)
    J = stretch.jacobian(i, theta, counted)
    H = (J.T @ (J * weight[counted, None])).astype(float)
    g = np.concatenate([np.zeros(2), right @ stretch.grid.basis]).astype(float)  # of scale and shift: the module's text
    if not own:
        return H, g
    if theta.size > 2:
        H[2:, 2:] += stretch.field_prior
        g[2:] -= stretch.field_prior @ theta[2:]
    cues = stretch.cues.get(i)
    if cues is not None:
        r, rows, w = cue_residuals(stretch, cues, theta, redescending)
        H += rows.T @ (rows * w[:, None])
        g -= rows.T @ (w * r)
    return H, g


def cue_residuals(
    stretch: Stretch, cues: CueRows, theta: Array, redescending: bool = True
) -> tuple[Array, Array, Array]:
    """Of a frame's cues: residuals (M,) of log depth, Jacobian rows (M, p), weights (M,) = robust / sigma^2."""
    basis = stretch.grid.basis_at(cues.uv)
    log_z = log_depth(cues.v, theta, stretch.domain, stretch.least_y) + basis @ theta[2:].astype(np.float32)
    rows = np.nan_to_num(stretch._rows(cues.v, basis, theta))
    r = np.nan_to_num((log_z - cues.log_z).astype(float))
    sigma = np.hypot(cues.sigma, stretch.settings.cue_floor)
    standard = r / sigma / max(mad(r / sigma), 1.0)
    w = (tukey(standard) if redescending else huber(standard)) * cues.share / sigma**2
    return r, rows.astype(float), np.where(np.isfinite(log_z), w, 0)


def _link_terms(
    stretch: Stretch, theta: Array, pairs: Sequence[Pair], spread: float, redescending: bool, every: int
) -> Iterator[_LinkTerm]:
    """The terms of all links."""
    surfaces = [stretch.surface(i, t) for i, t in enumerate(theta)]
    for pair in pairs:  # one at a time: the steps are so short that threads would only wait for the interpreter
        term = _link_term(stretch, theta, surfaces, pair, spread, redescending, every)
        if term is not None:
            yield term


def _link_term(
    stretch: Stretch,
    theta: Array,
    surfaces: list[Surface],
    pair: Pair,
    spread: float,
    redescending: bool,
    every: int,
) -> _LinkTerm | None:
    i, j = pair
    found = stretch.link(i, j, surfaces[i], surfaces[j], 4 * spread if redescending else np.inf, every)
    if found is None or len(found.residual) < LEAST_SAMPLES:
        return None
    r = found.residual
    own = max(mad(r[::3]), stretch.settings.link_floor, found.floor)
    robust = tukey(r / np.float32(own)) if redescending else huber(r / np.float32(own))
    count = min(stretch.settings.independent / len(r), 1.0)
    w = (robust * (count / max(spread, stretch.settings.link_floor, found.floor) ** 2)).astype(np.float32)
    wg, N = w * found.gain, len(stretch.grid)
    white = min(max((surfaces[i].noise ** 2 + surfaces[j].noise ** 2) / own**2, LEAST_NOISE), 1.0)
    half = r * np.float32(0.5 * white)
    some = slice(None, None, THIN if len(r) > 100 * THIN else 1)
    share = np.float32(w.sum() / max(float(w[some].sum()), 1e-30))
    source, target = found.source[some], found.target[some]
    v_i, v_j = stretch.values[i], stretch.values[j]
    weighted = stretch.jacobian(j, theta[j], target) * (share * wg[some])[:, None]
    return _LinkTerm(
        pair,
        -(stretch.jacobian(i, theta[i], source).T @ weighted).astype(float),
        np.bincount(source, share * wg[some] * found.gain[some], N).astype(np.float32),
        np.bincount(found.source, -wg * r, N).astype(np.float32),
        np.bincount(target, share * w[some], N).astype(np.float32),
        np.bincount(found.target, w * r, N).astype(np.float32),
        np.array([-(wg * r) @ d for d in slopes(v_i[found.source], theta[i], stretch.domain, -half)]),
        np.array([(w * r) @ d for d in slopes(v_j[found.target], theta[j], stretch.domain, half)]),
        own,
    )


def _add_smoothness(system: BlockSystem, stretch: Stretch, theta: Array, before: int | None) -> None:
    settings, p = stretch.settings, stretch.grid.unknowns
    sigma = np.full(p, settings.node_step)
    sigma[:2] = settings.scale_step, settings.scale_step * stretch.y_unit
    precision = np.diag(1 / sigma**2)
    for i in range(len(stretch) - 1 if before is None else min(before, len(stretch) - 1)):
        pull = (theta[i] - theta[i + 1]) / sigma**2
        _add(system, stretch, i, i, precision, -pull)
        _add(system, stretch, i + 1, i + 1, precision, pull)
        _add(system, stretch, i, i + 1, -precision)


def _add(system: BlockSystem, stretch: Stretch, i: int, j: int, H: Array, g: Array | None = None) -> None:
    """Add a (p, p) part of H for frames i <= j, with its mirror image inside a block, and a part of g for frame i."""
    D, p = stretch.block_frames, stretch.grid.unknowns
    (a, row), (b, column) = divmod(i, D), divmod(j, D)
    rows, columns = slice(row * p, (row + 1) * p), slice(column * p, (column + 1) * p)
    if a != b:
        system.coupling[a][rows, columns] += H
    else:
        system.diagonal[a][rows, columns] += H
        if i != j:
            system.diagonal[a][columns, rows] += H.T
    if g is not None:
        system.right[a][rows] += g
