"""Optical flow between small grey pictures of a clip: what ties frames together whose camera path is not known.

OpenCV's DIS (Kroeger et al., ECCV 2016, arXiv 1603.03590) finds the flow; alone it loses steps beyond a tenth of the
width. So neighbouring frames start from a search over coarse pictures, and frames further apart from the neighbours'
flows one after another. A pixel counts when the flow back leads home and both pictures look alike there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from .align.flow import Flow
from .errors import InputError
from .frames import VideoSource
from .progress import Progress, Steps
from .progress import run as drive
from .types import BoolImage, FloatImage

Gray = NDArray[np.uint8]

THUMBNAIL = 160  # px, longest side
DEPTH_CHANGE = 2.0  # log depth that surfaces may change by, over the mean growth of what is seen
LEAST_SIDE = 16  # px: what DIS and the coarse search need
NEIGHBOURHOOD = 0.05  # of the longest side: brightness and contrast are taken relative to so much around a pixel
NOISE = 4.0  # grey levels of contrast that count as texture
EVEN_CONTRAST = 40.0  # grey levels that DIS is shown for one unit of local contrast
COARSE = 40  # px, longest side of the pictures that are searched ...
REACH = 10  # ... for steps so long, along both axes
PATCH = 7  # px of them that are compared
LIKED = 0.002  # cost of a step per coarse pixel: where nothing can be told, things stand still
LONGEST_CHAIN = 32  # frames
RETURNS_PX, RETURNS_SHARE = 1.5, 0.05  # how far from home the flow back may lead: pixels, and share of the way
UNLIKE = 0.5  # mean difference around a pixel, in units of local contrast, from which it shows something else
LEAST_SHARE = 0.1  # of the texture that two frames must have in common
APPROACH = 0.1  # log change of size from which frames further apart are not tied: depth does not stay what it was
APPROACH_PIXELS = 400  # that are looked at for it


def thumbnails(video: VideoSource, max_side: int = THUMBNAIL, positions: Iterable[int] | None = None) -> Gray:
    """(T, h, w) uint8: the used frames in grey, or those at some positions, in order."""
    return drive(thumbnails_steps(video, max_side, positions))


def thumbnails_steps(
    video: VideoSource, max_side: int = THUMBNAIL, positions: Iterable[int] | None = None
) -> Steps[Gray]:
    """`thumbnails` as a generator of Progress."""
    every = (frame.rgb for frame in video.frames(max_side=max_side))
    some = every if positions is None else (rgb for _, rgb in video.frames_at(positions, max_side=max_side))
    pictures = []
    for rgb in some:
        pictures.append(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
        yield Progress("thumbnails", len(pictures), video.expected_frames() if positions is None else None)
    return np.stack(pictures) if pictures else np.zeros((0, *video.size(max_side)[::-1]), np.uint8)


class ClipFlow:
    """`flow(i, j)` between frames of a clip, from their thumbnails (T, h, w) uint8; equal input gives equal flow.

    None where the frames have next to nothing in common: across a cut, or when one is black. Alignment takes depth to
    stay the same along the flow, so there is none either between frames further apart than neighbours once the camera
    has come nearer, or gone away: things change their size by more than `most_approach`, as a log ratio.

    Only what a few dozen frames need is kept, so ask in the order of the clip.
    """

    def __init__(self, grays: Gray, most_approach: float = APPROACH) -> None:
        if grays.ndim != 3 or grays.dtype != np.uint8:
            raise InputError(f"thumbnails must be (T, h, w) uint8, got {grays.shape} {grays.dtype}")
        height, width = grays.shape[1:]
        if min(width, height) < LEAST_SIDE:
            raise InputError(
                f"frames of {width}x{height} px are too small for optical flow: it takes {LEAST_SIDE} px each way"
            )
        self._grays, self._most_approach = grays, most_approach
        self._picture = lru_cache(4 * LONGEST_CHAIN)(lambda i: Picture.of(grays[i]))
        self._neighbour = lru_cache(4 * LONGEST_CHAIN)(self._between_neighbours)

    def __len__(self) -> int:
        return len(self._grays)

    def __call__(self, i: int, j: int) -> Flow | None:
        """From frame i to frame j."""
        a, b = self._picture(i), self._picture(j)
        if not (a.textured.any() and b.textured.any()):
            return None
        with one_thread():
            there, back = self._steps(i, j), self._steps(j, i)
            valid = agreement(there, back) & alike(a, b, there)
        if valid[a.textured].mean() < LEAST_SHARE:
            return None
        nearer = approach(there, valid)
        if abs(i - j) > 1 and nearer > self._most_approach:
            return None
        return Flow((there / valid.shape[::-1]).astype(np.float32), valid, DEPTH_CHANGE * nearer)

    def _steps(self, i: int, j: int) -> FloatImage:
        """(h, w, 2) pixels: column, row."""
        if not 1 < abs(i - j) <= LONGEST_CHAIN:
            return self._neighbour(i, j)
        way = 1 if j > i else -1
        start = self._neighbour(i, i + way)
        for k in range(i + way, j, way):
            start = compose(start, self._neighbour(k, k + way))
        return refined(self._picture(i), self._picture(j), start)

    def _between_neighbours(self, i: int, j: int) -> FloatImage:
        a, b = self._picture(i), self._picture(j)
        return refined(a, b, coarse_steps(a, b))


@dataclass(frozen=True, eq=False)
class Picture:
    """A thumbnail with what comparing it takes.

    normal (h, w): brightness relative to the neighbourhood, in units of its contrast; even (h, w) uint8: the same for
    DIS; coarse: `normal`, small; textured (h, w): where there is anything to see.
    """

    normal: FloatImage
    even: Gray
    coarse: FloatImage
    textured: BoolImage

    @classmethod
    def of(cls, gray: Gray) -> Picture:
        height, width = gray.shape
        longest = max(width, height)
        value, sigma = gray.astype(np.float32), NEIGHBOURHOOD * longest
        mean = cv2.GaussianBlur(value, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
        variance = cv2.GaussianBlur((value - mean) ** 2, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
        normal = np.asarray((value - mean) / (np.sqrt(variance) + NOISE), np.float32)
        size = (max(PATCH, round(width * COARSE / longest)), max(PATCH, round(height * COARSE / longest)))
        coarse = cv2.resize(normal, size, interpolation=cv2.INTER_AREA)
        even = np.clip(128 + EVEN_CONTRAST * normal, 0, 255).astype(np.uint8)
        return cls(normal, even, np.asarray(coarse, np.float32), np.asarray(variance > NOISE**2))


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV on one thread: DIS's result depends on how the picture is shared out, and so small a one gains nothing."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def dense_flow(a: Gray, b: Gray) -> FloatImage:
    """(h, w, 2) steps in pixels, column and row, from picture a to picture b, wherever they lead."""
    with one_thread():
        first, second = Picture.of(a), Picture.of(b)
        return refined(first, second, coarse_steps(first, second))


def refined(a: Picture, b: Picture, start: FloatImage) -> FloatImage:
    """DIS from a start (h, w, 2)."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    return np.asarray(dis.calc(a.even, b.even, start.copy()))


def coarse_steps(a: Picture, b: Picture) -> FloatImage:
    """(h, w, 2) steps from the best match of each patch of the coarse pictures."""
    height, width = a.coarse.shape
    padded = cv2.copyMakeBorder(b.coarse, REACH, REACH, REACH, REACH, cv2.BORDER_REPLICATE)
    moved = np.lib.stride_tricks.sliding_window_view(padded, (2 * REACH + 1, 2 * REACH + 1))  # (h, w, dy, dx)
    shift = np.arange(-REACH, REACH + 1, dtype=np.float32)
    cost = np.stack(
        [
            cv2.boxFilter(np.abs(moved[:, :, k] - a.coarse[..., None]), -1, (PATCH, PATCH))
            + LIKED * np.hypot(shift, dy)
            for k, dy in enumerate(shift)
        ],
        2,
    )
    best = cost.reshape(height, width, -1).argmin(2)
    steps = np.stack([shift[best % len(shift)], shift[best // len(shift)]])
    smooth = np.stack([cv2.medianBlur(part, 5) for part in steps], -1)
    rows, columns = a.normal.shape
    large = cv2.resize(smooth, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large * (columns / width, rows / height), np.float32)


def compose(first: FloatImage, second: FloatImage) -> FloatImage:
    """The steps (h, w, 2) of `first`, and from where they lead those of `second`."""
    return first + carried(second, first)


def carried(image: FloatImage, steps: FloatImage) -> FloatImage:
    """What `image` (h, w) or (h, w, 2) holds where the steps lead; beyond its border, what is on it."""
    column, row = destinations(steps)
    return np.asarray(cv2.remap(image, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def destinations(steps: FloatImage) -> tuple[FloatImage, FloatImage]:
    """Array (column, row), whole numbers at pixel centres, to which each pixel moves."""
    height, width = steps.shape[:2]
    row, column = np.ogrid[:height, :width]
    return steps[..., 0] + column.astype(np.float32), steps[..., 1] + row.astype(np.float32)


def agreement(there: FloatImage, back: FloatImage) -> BoolImage:
    """(h, w): which steps end inside the other picture and are undone by those back."""
    column, row = destinations(there)
    height, width = there.shape[:2]
    inside = (column > -0.5) & (column < width - 0.5) & (row > -0.5) & (row < height - 0.5)
    gap = np.linalg.norm(compose(there, back), axis=-1)
    return np.asarray(inside & (gap < RETURNS_PX + RETURNS_SHARE * np.linalg.norm(there, axis=-1)))


def alike(a: Picture, b: Picture, there: FloatImage) -> BoolImage:
    """(h, w): where the pictures look the same."""
    return np.asarray(cv2.boxFilter(np.abs(a.normal - carried(b.normal, there)), -1, (PATCH, PATCH)) < UNLIKE)


def approach(steps: FloatImage, valid: BoolImage) -> float:
    """By how much most of what moves along the steps (h, w, 2) grows or shrinks: absolute log ratio of its sizes."""
    row, column = (x[:: max(1, len(x) // APPROACH_PIXELS)] for x in np.nonzero(valid))
    start = np.stack([column, row], 1).astype(np.float32)
    similarity, _ = cv2.estimateAffinePartial2D(start, start + steps[row, column])
    return np.inf if similarity is None else float(abs(np.log(np.hypot(*similarity[0, :2]) + 1e-9)))
