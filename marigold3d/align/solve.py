"""The joint solve: start values frame by frame, Gauss-Newton over windows of the clip, covariances."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from ..progress import Progress, Steps
from ..types import Array, Domain
from .blocks import BlockFactor, BlockSystem, eliminate_before, factorise, solve_constrained
from .domains import to_domain
from .grid import Float32, log_depth
from .joint import LEAST_SAMPLES, Pair, Stretch, assemble
from .links import Surface
from .robust import huber, mad

BoolArray = NDArray[np.bool_]

ROUNDS = (*[("huber", 7)] * 3, *[("tukey", 3)] * 2, ("tukey", 1))
"""Gauss-Newton rounds: convex weights while frames may be far off, every n-th sample while they still move."""
DAMPING = 0.1
RISE = 1.3  # growth of the links' spread in one round at which a step is taken back
CONVERGED = 2e-3  # of log depth: steps of scale and field that no longer matter
LONGEST_STEP = 0.7  # of log scale in one step
WIDEST_SPREAD = 0.3  # of links, log depth
WINDOW_BLOCKS = 12  # blocks solved together, which is what memory holds; a block is as long as the longest link
OVERLAP_BLOCKS = 2  # of them, solved again with what comes after
LEAST_OVERLAP = 0.2  # share of the samples two frames must have in common for one to start from the other
WIDE_PAIRS = 40  # that tell scale and contrast by their parallax
LEAST_PARALLAX = 0.02  # change of their mismatch by scale; less means that the camera stood still, or only turned
MISS = 0.1  # share of the range of values by which a prediction is as wrong as can be
SPAN = 7.0  # far : near - 1 of a frame nothing is known about


@dataclass(frozen=True, eq=False)
class Seam:
    """What earlier windows know of a window's first frames: information (m, m) and its vector (m,) about theta."""

    information: Array
    vector: Array
    theta: Array


@dataclass(frozen=True, eq=False)
class Solution:
    """theta (T, p); covariance (T, 2, 2) of log scale and shift; node_sigma (T, p - 2) of the field; the links' spread
    in log depth."""

    theta: Array
    covariance: Array
    node_sigma: Array
    spread: float


def solve_stretch(
    stretch: Stretch, start: Array, known: BoolArray, window_blocks: int = WINDOW_BLOCKS
) -> Steps[Solution]:
    """All frames of a stretch from `start` (T, p), in windows that hand their knowledge on.

    known (T, 2) bool: which frames have cues that determine their scale, their contrast. Where none of a window has,
    and none before it had, the window's mean scale or contrast is held: links alone cannot tell it.
    """
    theta, T, D = start.copy(), len(stretch), stretch.block_frames
    covariance, node_sigma = np.zeros((T, 2, 2)), np.zeros((T, theta.shape[1] - 2), np.float32)
    seam: Seam | None = None
    first = 0
    while True:
        last = first + window_blocks * D
        last = T if last + OVERLAP_BLOCKS * D >= T else last
        window = stretch.part(first, last)
        solved = yield from _solve_window(window, theta[first:last], np.asarray(~known[:last].any(0)), seam, first)
        theta[first:last] = solved.theta
        covariance[first:last], node_sigma[first:last] = solved.covariance, solved.node_sigma
        if last == T:
            return Solution(theta, covariance, node_sigma, solved.spread)
        step = (window_blocks - OVERLAP_BLOCKS) * D
        seam = _seam(window, solved, seam, step)
        first += step


def _solve_window(stretch: Stretch, start: Array, gauge: BoolArray, seam: Seam | None, first: int) -> Steps[Solution]:
    """The frames of one window; gauge (2,): hold the mean scale, the mean contrast of those not solved before."""
    theta, spread = start, _spread_at(stretch, start)
    held = len(stretch) if seam is None else len(seam.theta)
    settled = False
    steady: tuple[float, Array] | None = None
    for done, (loss, every) in enumerate(ROUNDS, 1):
        last = done == len(ROUNDS)
        if settled and not last:
            continue
        system, spreads = assemble(stretch, theta, spread, loss == "tukey", every)
        if seam is not None:
            _join(system, seam, theta, stretch)
        with threadpool_limits(1, "blas"):  # two threads are slower on blocks of this size
            factor = factorise(_damp(system, stretch))
            step = solve_constrained(factor, system.right, _constraints(stretch, theta, gauge, held))
        now = _common_spread(spreads, stretch)
        if steady is not None and now > RISE * steady[0]:
            theta = steady[1]  # the frames agree less than before: the step before this one was no good
            break
        if loss == "tukey":
            steady = now, theta
        theta, moved = _moved(stretch, theta, np.concatenate(step).reshape(theta.shape))
        spread = now
        settled = loss == "tukey" and moved < CONVERGED
        yield Progress("solve", first + round(len(stretch) * done / len(ROUNDS)), first + len(stretch))
    return Solution(theta, *_covariances(factor, stretch), spread)


def _moved(stretch: Stretch, theta: Array, step: Array) -> tuple[Array, float]:
    """theta after a step, shortened for frames that would leap, and the root mean square over frames of the change."""
    size = np.maximum(np.abs(step[:, 0]), np.abs(step[:, 1]) / stretch.y_unit)
    if step.shape[1] > 2:
        size = np.maximum(size, np.abs(step[:, 2:]).max(1))
    return theta + step * np.minimum(1, LONGEST_STEP / np.maximum(size, 1e-12))[:, None], float(
        np.sqrt(np.mean(size**2))
    )


def _damp(system: BlockSystem, stretch: Stretch) -> BlockSystem:
    """Add a share of their own diagonal to scales and shifts (Levenberg), so that common drifts do not overshoot.

    The change of all frames' contrast together is nearly free, and H says little true about it. It stays near the
    start values, whose chain of links is unbiased; what frames differ in has curvature enough not to feel this.
    In place: a copy of all blocks would be a third of what a window takes. Returns the system.
    """
    p = stretch.grid.unknowns
    for D in system.diagonal:
        own = np.einsum("ii->i", D)  # a view
        own += np.tile([DAMPING, DAMPING, *[0.0] * (p - 2)], len(D) // p) * own + 1e-9
    return system


def _spread_at(stretch: Stretch, theta: Array) -> float:
    """Median over some links of the spread of their residuals at the start: what they can be trusted with."""
    pairs = stretch.pairs()
    found = []
    for i, j in pairs[:: max(1, len(pairs) // 60)]:
        link = stretch.link(i, j, stretch.surface(i, theta[i]), stretch.surface(j, theta[j]), np.inf, 7)
        if link is not None and len(link.residual) >= LEAST_SAMPLES:
            found.append(mad(link.residual))
    return _common_spread(np.array(found), stretch)


def _common_spread(spreads: Array, stretch: Stretch) -> float:
    if not len(spreads):
        return WIDEST_SPREAD
    return float(np.clip(np.median(spreads), stretch.settings.link_floor, WIDEST_SPREAD))


def _constraints(stretch: Stretch, theta: Array, gauge: BoolArray, held: int) -> list[Array]:
    """Columns (m_k, n) of the gauge: the sums over the first `held` frames of the changes of log scale and contrast."""
    T, p = theta.shape
    scale, contrast = np.zeros((T, p)), np.zeros((T, p))
    if stretch.domain == "log_depth":
        scale[:, 1], contrast[:, 0] = 1, 1
    else:  # contrast is the offset shift / scale; its change is (d shift - shift d log scale) / scale
        scale[:, 0], contrast[:, 1], contrast[:, 0] = 1, 1, -theta[:, 1]
    scale[held:], contrast[held:] = 0, 0
    columns = np.stack([scale.ravel(), contrast.ravel()], 1)[:, gauge]
    return np.split(columns, np.cumsum(stretch.block_sizes())[:-1])


def _covariances(factor: BlockFactor, stretch: Stretch) -> tuple[Array, Array]:
    """(T, 2, 2) of every frame's log scale and shift, and (T, p - 2) standard deviations of its nodes."""
    p = stretch.grid.unknowns
    parts: list[Array] = []
    nodes: list[Array] = []
    for block in factor.covariance_blocks():
        frames = np.arange(len(block) // p)
        own = block.reshape(len(frames), p, len(frames), p)
        parts.insert(0, own[frames, :2, frames, :2])
        nodes.insert(0, np.sqrt(np.maximum(np.diag(block), 0)).reshape(len(frames), p)[:, 2:])
    return np.concatenate(parts), np.concatenate(nodes)


# -- windows ----------------------------------------------------------------------------------------------------------


def _seam(window: Stretch, solved: Solution, before: Seam | None, step: int) -> Seam:
    """What the frames before `step` say of the block that starts there."""
    system, _ = assemble(window, solved.theta, solved.spread, True, before=step)
    if before is not None:
        _join(system, before, solved.theta, window)
    block = step // window.block_frames
    information, vector = eliminate_before(_damp(system, window), block)
    return Seam(information, vector, solved.theta[step : step + window.block_frames].copy())


def _join(system: BlockSystem, seam: Seam, theta: Array, stretch: Stretch) -> None:
    """Add a seam to the first block of a window now at theta."""
    off = (theta[: len(seam.theta)] - seam.theta).ravel()
    system.diagonal[0] += seam.information
    system.right[0] += seam.vector - seam.information @ off


# -- start values -----------------------------------------------------------------------------------------------------


def start_values(stretch: Stretch, known: dict[int, tuple[float, float]]) -> tuple[Array, BoolArray]:
    """theta (T, p) to start from: `known` (log scale, shift) of some frames, the others chained to them by links.

    Also which frames are tied to a known one (T,). With none known, the first frame with depth gets far : near = 8 and
    a median depth of 1.
    """
    T = len(stretch)
    theta = np.zeros((T, stretch.grid.unknowns))
    known = dict(known) or {_first_with_depth(stretch): assumed(stretch, _first_with_depth(stretch))}
    for i, values in known.items():
        theta[i, :2] = values
    stretch = replace(stretch, y_unit=typical_y(stretch, theta, known))
    waiting = deque(sorted(known))
    reached = set(waiting)
    while waiting:  # breadth first with the longest links first: few hops, since every hop adds its error
        towards = waiting.popleft()
        for frame in (towards + d for step in sorted(stretch.settings.dilations, reverse=True) for d in (step, -step)):
            if frame in reached or not 0 <= frame < T:
                continue
            found = _chained(stretch, theta, frame, towards)
            if found is not None:
                theta[frame, :2] = found
                reached.add(frame)
                waiting.append(frame)
    for frame in sorted(set(range(T)) - reached):  # tied to nothing: as the nearest frame before it, or after it
        near = min(reached, key=lambda other: abs(other - frame))
        theta[frame, :2] = theta[near, :2]
    return theta, np.isin(np.arange(T), list(reached))


def typical_y(stretch: Stretch, theta: Array, frames: Iterable[int]) -> float:
    """Median of |y| over some frames' medians, 1 in log depth: the unit that shifts, and what is no depth, go by."""
    if stretch.domain == "log_depth":
        return 1.0
    y = [
        np.exp(theta[i, 0]) * np.nanmedian(v) + theta[i, 1] for i in frames if np.isfinite(v := stretch.values[i]).any()
    ]
    return float(max(np.median(np.abs(y)), 1e-12)) if y else 1.0


def scaled(theta: Array, log_factor: float, domain: Domain) -> Array:
    """theta (T, p) of the same surfaces exp(log_factor) times as far."""
    out = theta.copy()
    if domain == "log_depth":
        out[:, 1] += log_factor
    else:
        sign = -1 if domain == "disparity" else 1
        out[:, 0] += sign * log_factor
        out[:, 1] *= np.exp(sign * log_factor)
    return out


def scale_from_parallax(stretch: Stretch, theta: Array) -> Array:
    """theta (T, p), whose scale and contrast are arbitrary, at those at which the poses' parallax ties frames best.

    A frame's depth moved into another must predict what the network said there, up to a scale and a shift: how badly it
    does, as a share of the range of values, does not get better by depth being flat or far away, as log ratios would.
    First a coarse search with every frame as `assumed`, then chained to the middle one, refined.
    """
    frames = [i for i in range(len(stretch)) if np.isfinite(stretch.values[i]).any()]
    pairs = _wide_pairs(stretch, frames)
    if not pairs:
        return theta
    middle = frames[len(frames) // 2]
    guess = {i: np.array(assumed(stretch, i)) for i in {i for i, _ in pairs} | {middle}}
    few = pairs[:: max(1, len(pairs) // 12)]
    factors, contrasts = np.log(2) * np.arange(-7, 7.1), (-2.1, -1.4, -0.7, 0.0, 0.5)
    costs = np.array([[_mismatch(stretch, guess, few, np.array((k, c))) for c in contrasts] for k in factors])
    if float(np.ptp(costs[:, costs.min(0).argmin()])) < LEAST_PARALLAX:
        return theta
    k, c = np.unravel_index(costs.argmin(), costs.shape)
    coarse = factors[k], contrasts[c]
    for start in (np.array(coarse), np.zeros(2)):
        found = minimize(
            lambda x, guess=guess: _mismatch(stretch, guess, pairs, x),
            start,
            method="Nelder-Mead",
            options={"initial_simplex": start + [(0, 0), (0.2, 0), (0, 0.2)], "xatol": 0.01, "maxfev": 30},
        ).x
        theta, _ = start_values(stretch, {middle: tuple(_stretched(stretch, middle, guess[middle], found).tolist())})
        guess = {i: theta[i, :2] for i in guess}
    return theta


def _wide_pairs(stretch: Stretch, frames: list[int]) -> list[Pair]:
    """At most about WIDE_PAIRS pairs of frames with depth, as far apart as links go, both ways round."""
    spans = [d for d in sorted(stretch.settings.dilations) if d < len(stretch)][-2:]
    some = set(frames)
    pairs = [(i, j) for i in frames for d in spans for j in (i - d, i + d) if j in some]
    return pairs[:: max(1, len(pairs) // WIDE_PAIRS)]


def _stretched(stretch: Stretch, frame: int, theta: Array, change: Array) -> Array:
    """(2,) log scale and shift exp(change[0]) times as far, contrast about the median exp(change[1]) times."""
    middle = np.exp(theta[0]) * float(np.nanmedian(stretch.values[frame]))
    contrast = np.array([theta[0] + change[1], theta[1] + middle * (1 - np.exp(change[1]))])
    out: Array = scaled(contrast[None], change[0], stretch.domain)[0]
    return out


def _mismatch(stretch: Stretch, guess: dict[int, Array], pairs: list[Pair], change: Array) -> float:
    """How badly frames, so changed, predict the values of others: mean over pairs, 0 to 1."""
    now = {i: _stretched(stretch, i, guess[i], change) for i in {i for i, _ in pairs}}
    return float(np.mean([_misses(stretch, i, j, now[i]) for i, j in pairs]))


def _misses(stretch: Stretch, i: int, j: int, theta: Array) -> float:
    """Share of frame i's samples, at theta (2,), that miss frame j's values, gradually up to MISS of their range.

    Of those in j's view: a depth must not gain by keeping more of them there. All miss when too few are.
    """
    own, every = stretch.values[j], max(1, len(stretch.grid) // 1000)
    log_z = log_depth(stretch.values[i], theta, stretch.domain)
    found = stretch.link(i, j, _flat(log_z), _flat(np.zeros_like(own), np.isfinite(own)), np.inf, every)
    if found is None or len(found.residual) * every < LEAST_OVERLAP * len(own):
        return 1.0
    y, v = to_domain(np.exp(found.residual.astype(float)), stretch.domain), own[found.target].astype(float)
    w = np.ones_like(v)
    for _ in range(3):
        dy, dv = y - np.average(y, weights=w), v - np.average(v, weights=w)
        slope = float(w @ (dy * dv)) / max(float(w @ (dy * dy)), 1e-30)
        r = dv - slope * dy
        w = huber(r / max(mad(r), 1e-9))
    if slope <= 0:
        return 1.0
    low, high = np.partition(v, (len(v) // 50, len(v) - 1 - len(v) // 50))[[len(v) // 50, -1 - len(v) // 50]]
    return float(np.minimum(np.abs(r) / (MISS * max(high - low, 1e-9)), 1).mean())


def _flat(log_z: Float32, known: BoolArray | None = None) -> Surface:
    """A surface whose slope does not matter."""
    return Surface(log_z, np.zeros((2, len(log_z)), np.float32), np.isfinite(log_z) if known is None else known)


def _first_with_depth(stretch: Stretch) -> int:
    return next((i for i in range(len(stretch)) if np.isfinite(stretch.values[i]).any()), 0)


def assumed(stretch: Stretch, frame: int) -> tuple[float, float]:
    """(log scale, shift) of a frame nothing is known about: median depth 1, and far : near = 8 where that is open."""
    v = stretch.values[frame]
    if not np.isfinite(v).any():
        return 0.0, 0.0
    low, middle = np.nanpercentile(v, (2, 50)).tolist()
    if stretch.domain == "log_depth":
        return 0.0, -middle
    rise = np.nanpercentile(v, 98) - low
    offset = rise / SPAN - low  # makes the largest value eight times the smallest
    return float(-np.log(max(middle + offset, 1e-12))), float(offset / max(middle + offset, 1e-12))


def _chained(stretch: Stretch, theta: Array, frame: int, towards: int) -> Array | None:
    """(2,) log scale and shift of `frame` that continue the depth of frame `towards`; None where little ties them.

    The other frame's samples are moved by its depth; the frame's own surface need only say where it has values.
    """
    own = stretch.values[frame]
    flat, other = _flat(np.zeros_like(own), np.isfinite(own)), stretch.surface(towards, theta[towards])
    found = stretch.link(towards, frame, other, flat, np.inf, max(1, len(own) // 2000))
    if found is None or len(found.residual) < LEAST_OVERLAP * min(len(own), 2000):
        return None
    log_z, target = found.residual, found.target  # the moved log depth: the flat surface lies at zero
    return _line(own[target].astype(float), to_domain(np.exp(log_z.astype(float)), stretch.domain), theta[towards])


def _line(v: Array, y: Array, fallback: Array) -> Array:
    """(log scale, shift) of y = scale * v + shift, robustly; the fallback's scale where v and y do not rise together.

    The scale is the ratio of the standard deviations (reduced major axis): v and y are two predictions, both with
    noise, and a regression of one on the other would lose contrast with every link of a chain.
    """
    w = np.ones_like(v)
    for _ in range(10):
        mean_v, mean_y = np.average(v, weights=w), np.average(y, weights=w)
        dv, dy = v - mean_v, y - mean_y
        rising = float((w * dv * dy).sum()) > 0
        scale = np.sqrt((w * dy * dy).sum() / max((w * dv * dv).sum(), 1e-300)) if rising else np.exp(fallback[0])
        r = dy - scale * dv
        w = huber(r / max(mad(r), 1e-6 * np.abs(mean_y) + 1e-12))
    return np.array([np.log(max(scale, 1e-12)), mean_y - scale * mean_v])
