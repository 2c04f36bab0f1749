"""The refinement of a clip: sweep every keyframe, keep what several sweeps agree on, merge it with the prior, and
carry it to the frames between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from ..config import RefineConfig
from ..depth.device import choose_device, in_parallel_or_waiting
from ..progress import FramePreview, Progress, Steps
from ..types import Array, DepthMap, Intrinsics
from .consistency import View, carried, compare, neighbour_positions
from .matching import SweepView
from .merge import Evidence, enlarged, merge
from .neighbours import MatchingViews
from .sizes import reduced, shrunk
from .sweep import SweepResult, explained, sweep

MIN_SCORE = 0.3  # under which a sweep's pixel is not believed, whoever agrees
AGREE_RATIO = 0.03  # sweeps that agree do so within this share of the depth
CHECKED_AGAINST = 6  # sweeps
CARRIED_FROM = 16  # keyframes: each sees a little that this one does not
BETWEEN_FROM = 4  # keyframes on either side of a frame that is none
FIT_VIEWS = 4  # that say whether carried depth fits a frame's own picture

Images = Callable[[Sequence[int]], Iterator[NDArray[np.uint8]]]  # rgb of frames at increasing positions


@dataclass(frozen=True, eq=False)
class Keyframes:
    """The M posed keyframes: positions, poses (M, 4, 4), camera at the depth maps' size, typical depth of the scene."""

    positions: NDArray[np.int64]
    T_world_camera: Array
    camera: Intrinsics
    median_depth: float


@dataclass(frozen=True, eq=False)
class DepthAccess:
    """How refinement reads aligned depth and keeps its own, by position: swept and sure at the sweep's size.

    What an interrupted run has kept is not made again: `swept` and `share` are None for what it has not. share: of a
    refined frame's pixels, those that views decided.
    """

    aligned: Callable[[int], DepthMap]
    swept: Callable[[int], SweepResult | None]
    keep_swept: Callable[[int, SweepResult], None]
    sure: Callable[[int], DepthMap]
    keep_sure: Callable[[int, DepthMap], None]
    refined: Callable[[int], DepthMap]
    keep: Callable[[int, DepthMap, float], None]
    share: Callable[[int], float | None]


def sweep_size(camera: Intrinsics, max_side: int) -> tuple[int, int]:
    """(width, height), even, at which views are matched."""
    scale = min(1.0, max_side / max(camera.width, camera.height))
    return 2 * round(camera.width * scale / 2), 2 * round(camera.height * scale / 2)


@dataclass(frozen=True, eq=False)
class Refinement:
    """The steps, in the order in which they are to be run. The keyframes' images stay in memory at the sweep's size."""

    keys: Keyframes
    depths: DepthAccess
    images: Images
    config: RefineConfig = RefineConfig()  # noqa: RUF009 (frozen)
    device: str = "cpu"

    @cached_property
    def camera(self) -> Intrinsics:
        """At the sweep's size."""
        return self.keys.camera.scaled_to(*sweep_size(self.keys.camera, self.config.max_side))

    @cached_property
    def views(self) -> MatchingViews:
        """Which keyframes can be matched with which."""
        return MatchingViews.of_depth_maps(self.keys.T_world_camera, map(self.depths.aligned, self._rows), self.camera)

    @cached_property
    def pictures(self) -> list[SweepView]:
        """(M,) the keyframes as they are matched."""
        pairs = zip(self.images(list(self._rows)), self.keys.T_world_camera, strict=True)
        return [SweepView(shrunk(rgb, *self._size), T) for rgb, T in pairs]

    # -- steps --------------------------------------------------------------------------------------------------------

    def sweep(self) -> Steps[None]:
        """Sweep every keyframe."""
        todo = [i for position, i in self._rows.items() if self.depths.swept(position) is None]
        if not todo:
            return
        views, pictures = self.views, self.pictures  # made here, used by workers
        positions = list(self._rows)

        def one(number: int) -> SweepResult:
            i = todo[number]
            near = [pictures[j] for j in views.of(i, self.config.neighbours)]
            prior = self._prior(positions[i])
            if not near or not prior.valid.any():
                zero = np.zeros_like(prior.depth)
                return SweepResult(zero, zero + 1, zero)
            sigma = (
                0.0 if prior.sigma is None else float(np.median(prior.sigma[prior.valid] / prior.depth[prior.valid]))
            )
            filled = np.where(prior.valid, prior.depth, np.median(prior.depth[prior.valid])).astype(np.float32)
            return sweep(pictures[i], near, self.camera, filled, sigma, self.device)

        before = len(positions) - len(todo)
        number = 0
        for swept in in_parallel_or_waiting(one, len(todo), choose_device(self.device)):
            if swept is None:
                yield Progress("sweep", before + number, len(positions))
                continue
            position = positions[todo[number]]
            self.depths.keep_swept(position, swept)
            number += 1
            yield Progress("sweep", before + number, len(positions), FramePreview(position, swept.depth))

    def confirm(self) -> Steps[float]:
        """Keep of every sweep what another sweep agrees on, averaged with it; the share of all pixels.

        Two sweeps match different windows of different images, so they rarely agree by chance.
        """
        agreed: list[float] = []
        for position, i in self._rows.items():
            own, *others = (
                View(believed(self._swept(self._position(j))), self.keys.T_world_camera[j])
                for j in [i, *self._around(i, CHECKED_AGAINST)]
            )
            verdict = compare(own, others, self.camera, AGREE_RATIO)
            sure = own.depth.valid & (verdict.agree >= 1) & (verdict.contradict <= verdict.agree)
            depth = np.where(sure, verdict.depth, 0).astype(np.float32)
            self.depths.keep_sure(position, DepthMap(depth, sure, verdict.sigma))
            agreed.append(float(sure.mean()))
            yield Progress("agree", len(agreed), len(self._rows))
        return float(np.mean(agreed)) if agreed else 0.0

    def merge_keyframes(self) -> Steps[float]:
        """Merge every keyframe's prior with what the views say; the share of its pixels that they decided."""
        yield from self._merge_all("refine", list(self._rows), lambda p, _: self._of_keyframe(p))
        return float(np.mean([self.depths.share(position) or 0.0 for position in self._rows])) if self._rows else 0.0

    def merge_between(self, positions: NDArray[np.int64], T_world_camera: Array) -> Steps[None]:
        """Merge the frames at `positions` (B,), which are no keyframes, with what the keyframes around them hold.

        T_world_camera (T, 4, 4) of all used frames.
        """
        yield from self._merge_all(
            "between", positions.tolist(), lambda p, rgb: self._of_frame_between(p, rgb, T_world_camera[p])
        )

    # -- evidence -----------------------------------------------------------------------------------------------------

    def _of_keyframe(self, position: int) -> Evidence:
        i, swept, own = self._rows[position], self._swept(position), self.depths.sure(position)
        others = carried(self._sure(self._around(i, CARRIED_FROM)), self.keys.T_world_camera[i], self.camera)
        near = [self.pictures[j] for j in self.views.of(i, FIT_VIEWS)]
        sure = _first(own, self._fitting(others, self.pictures[i], near))
        return Evidence(sure, swept.depth, np.where(swept.depth > 0, swept.score.clip(0, 1), 0))

    def _of_frame_between(self, position: int, rgb: NDArray[np.uint8], T_world_camera: Array) -> Evidence:
        view = SweepView(rgb, T_world_camera)
        after, M = int(np.searchsorted(self.keys.positions, position)), len(self._rows)
        near = range(max(0, after - BETWEEN_FROM), min(M, after + BETWEEN_FROM))
        beside = [j for j in (after - 1, after) if 0 <= j < M]
        refined = [
            View(reduced(self.depths.refined(self._position(j)), *self._size), self.keys.T_world_camera[j])
            for j in beside
        ]
        pictures = [self.pictures[j] for j in range(max(0, after - FIT_VIEWS // 2), min(M, after + FIT_VIEWS // 2))]
        sure = self._fitting(carried(self._sure(near), T_world_camera, self.camera), view, pictures)
        likely = self._fitting(carried(refined, T_world_camera, self.camera), view, pictures)
        return Evidence(sure, likely.depth, likely.valid.astype(np.float32))

    def _fitting(self, depth: DepthMap, view: SweepView, others: Sequence[SweepView]) -> DepthMap:
        """What of depth carried to a view fits its picture: what others saw may be hidden here, or have moved."""
        if not others or not depth.valid.any():
            return depth
        fits = depth.valid & explained(view, others, self.camera, depth.depth, self.device)
        return DepthMap(np.where(fits, depth.depth, 0), fits, depth.sigma)

    # -- access -------------------------------------------------------------------------------------------------------

    @cached_property
    def _rows(self) -> dict[int, int]:
        """Row among the keyframes, by position."""
        return {position: row for row, position in enumerate(self.keys.positions.tolist())}

    @property
    def _size(self) -> tuple[int, int]:
        return self.camera.width, self.camera.height

    def _position(self, row: int) -> int:
        return int(self.keys.positions[row])

    def _around(self, row: int, count: int) -> list[int]:
        return neighbour_positions(self.keys.T_world_camera, row, self.keys.median_depth, count)

    def _prior(self, position: int) -> DepthMap:
        return reduced(self.depths.aligned(position), *self._size)

    def _swept(self, position: int) -> SweepResult:
        swept = self.depths.swept(position)
        assert swept is not None, "all keyframes are swept before any is looked at"
        return swept

    def _sure(self, rows: Sequence[int]) -> list[View]:
        return [View(self.depths.sure(self._position(j)), self.keys.T_world_camera[j]) for j in rows]

    def _merge_all(
        self, stage: str, positions: list[int], evidence: Callable[[int, NDArray[np.uint8]], Evidence]
    ) -> Steps[None]:
        """Merge and keep the frames that are not kept yet; evidence: from position and rgb at the sweep's size."""
        todo = [position for position in positions if self.depths.share(position) is None]
        if not todo:
            return
        _ = self.views, self.pictures  # made here once, not by two workers at a time
        frames = _InTurn(self.images(todo))

        def one(number: int) -> tuple[DepthMap, float]:
            position, rgb = todo[number], frames[number]
            aligned, prior = self.depths.aligned(position), self._prior(position)
            small = shrunk(rgb, *self._size)
            merged = merge(prior, evidence(position, small), small)
            depth = aligned if merged.depth is prior else enlarged(merged.depth, prior, aligned, rgb)
            return depth, float(merged.from_views.mean())

        before = len(positions) - len(todo)
        number = 0
        for refined in in_parallel_or_waiting(one, len(todo), choose_device(self.device)):
            if refined is None:
                yield Progress(stage, before + number, len(positions))
                continue
            depth, share = refined
            self.depths.keep(todo[number], depth, share)
            number += 1
            yield Progress(stage, before + number, len(positions), FramePreview(todo[number - 1], depth.depth))


class _InTurn:
    """An iterator's items by number, for workers that ask for them a little out of turn."""

    def __init__(self, items: Iterator[NDArray[np.uint8]]) -> None:
        self._items, self._lock = enumerate(items), Lock()
        self._waiting: dict[int, NDArray[np.uint8]] = {}

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        with self._lock:
            while number not in self._waiting:
                at, item = next(self._items)
                self._waiting[at] = item
            return self._waiting.pop(number)


def believed(swept: SweepResult) -> DepthMap:
    """The pixels of a sweep that matched."""
    good = (swept.score > MIN_SCORE) & (swept.depth > 0)
    return DepthMap(np.where(good, swept.depth, 0).astype(np.float32), good, swept.sigma * swept.depth)


def _first(own: DepthMap, other: DepthMap) -> DepthMap:
    """`own` where it is valid, `other` elsewhere."""
    sigmas = [np.zeros_like(d.depth) if d.sigma is None else d.sigma for d in (own, other)]
    return DepthMap(np.where(own.valid, own.depth, other.depth), own.valid | other.valid, np.where(own.valid, *sigmas))
