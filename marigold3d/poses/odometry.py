"""Camera path from colour and depth together, where structure from motion finds too little texture.

Neighbouring views are aligned pixel by pixel in colour and depth (Park, Zhou, Koltun: "Colored Point Cloud Registration
Revisited", ICCV 2017, as Open3D's hybrid RGB-D odometry has it); views that look alike later on are tried as loops; a
pose graph spreads what they disagree by and drops loops that do not fit (Choi, Zhou, Koltun: "Robust Reconstruction of
Indoor Scenes", CVPR 2015). Depth must be consistent between views: what is wrong in it ends up in the path.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import GeometryError
from ..progress import Progress, Steps
from ..rigid import inverse
from ..types import Array, DepthMap, Intrinsics

WORKING_WIDTH = 320  # px; finer costs four times as much and moves the path by less than depth noise
WORKING_DEPTH = 2.0  # the median depth is scaled to this: Open3D's tolerances are meant for rooms in metres
FAR_DEPTH = 3.0 * WORKING_DEPTH  # what is farther says little about translation
OUTLIER_DEPTH = 0.07  # a pixel pair that disagrees by more is no pair; working units
HUBER_DEPTH, HUBER_INTENSITY = 0.05, 0.1
PAIR_DISTANCE = 0.05  # of corresponding points in the information matrix; working units
ITERATIONS = (15, 8, 5)  # coarse to fine
MIN_FITNESS = 0.35  # share of pixels that find their pair in the other view
LOOP_GAP = 10  # views apart before two of them may close a loop
LOOPS_A_VIEW = 2  # candidates tried for a view
LOOP_LIKENESS = 0.6  # correlation of thumbnails that makes a candidate
THUMBNAIL = (32, 24)
PREFER_LOOPS = 1.0


@dataclass(frozen=True, eq=False)
class RGBDView:
    """rgb (H, W, 3) uint8 and its depth map (H, W), in units that all views share."""

    rgb: NDArray[np.uint8]
    depth: DepthMap


@dataclass(frozen=True, eq=False)
class OdometryPath:
    """first: number of the first view of the longest unbroken run; T_world_camera (M, 4, 4) of its M views, the first
    at the origin, in the depth's units; loops: closed, tried: loop candidates; breaks: neighbours that did not align.
    """

    first: int
    T_world_camera: Array
    loops: int
    tried: int
    breaks: int


@dataclass(frozen=True, eq=False)
class _Edge:
    """T_b_a (4, 4) from view a's frame to b's, its information matrix (6, 6), fitness, and whether it is a loop."""

    a: int
    b: int
    T_b_a: Array
    information: Array
    fitness: float
    is_loop: bool = False


def rgbd_odometry(
    views: Iterable[RGBDView], count: int, camera: Intrinsics, typical_depth: float
) -> Steps[OdometryPath]:
    """Poses of `count` views, which come in order. `camera` is theirs, its distortion is left out of account;
    typical_depth: about the scene's median.

    Memory: a reduced copy of every view (1.2 MB). Raises GeometryError when fewer than three neighbours hold together.
    """
    prepared = _Prepared(camera, typical_depth)
    edges: list[_Edge | None] = []
    step: Array = np.eye(4)
    for b, view in enumerate(views):
        prepared.add(view)
        if b > 0:
            edge = prepared.align(b - 1, b, (step, np.eye(4)))
            edges.append(edge)
            step = np.eye(4) if edge is None else edge.T_b_a
        yield Progress("odometry", b + 1, count)
    first, last = _longest_run(edges)
    if last - first < 2:
        raise GeometryError(
            "colour and depth do not tell how the camera moved: neighbouring frames do not align; use more frames "
            "(--stride 1), give --poses FILE, or --static if the camera stood still"
        )
    chain = [e for e in edges[first:last] if e is not None]
    T = _chained(chain)
    candidates = prepared.loop_candidates(first, last)
    loops = []
    for done, (a, b) in enumerate(candidates):
        guess = inverse(T[b - first]) @ T[a - first]
        edge = prepared.align(a, b, (guess, np.eye(4)))
        if edge is not None:
            loops.append(_Edge(a, b, edge.T_b_a, edge.information, edge.fitness, is_loop=True))
        yield Progress("loops", done + 1, len(candidates))
    T, kept = _optimised(first, T, chain, loops)
    T[:, :3, 3] /= prepared.factor
    return OdometryPath(first, T, kept, len(candidates), sum(e is None for e in edges))


class _Prepared:
    """Views at working size and scale, as Open3D wants them."""

    def __init__(self, camera: Intrinsics, typical_depth: float) -> None:
        import open3d as o3d

        self._o3d = o3d
        self._images, self._thumbnails = list[Any](), list[NDArray[np.float32]]()
        width = min(WORKING_WIDTH, camera.width)
        self._camera = camera.scaled_to(width, round(camera.height * width / camera.width))
        c = self._camera
        # Open3D puts pixel centres at whole numbers, marigold3d at halves.
        K = np.array([[c.fx, 0, c.cx - 0.5], [0, c.fy, c.cy - 0.5], [0, 0, 1]])
        self._K = o3d.core.Tensor.from_numpy(K)
        self.factor = WORKING_DEPTH / typical_depth

    def add(self, view: RGBDView) -> None:
        """Take the next view in."""
        rgb, size = Image.fromarray(view.rgb), (self._camera.width, self._camera.height)
        thumbnail = np.asarray(rgb.resize(THUMBNAIL, Image.Resampling.BOX).convert("L"), np.float32).ravel()
        thumbnail = thumbnail - thumbnail.mean()
        self._thumbnails.append(thumbnail / np.float32(max(float(np.linalg.norm(thumbnail)), 1e-6)))
        depth = np.where(view.depth.valid, view.depth.depth * self.factor, 0).astype(np.float32)
        # Nearest, so that no depth lies between two surfaces.
        z = np.asarray(Image.fromarray(depth).resize(size, Image.Resampling.NEAREST))
        color = np.asarray(rgb.resize(size, Image.Resampling.BOX), np.float32) / np.float32(255)
        image = self._o3d.t.geometry.Image
        self._images.append(self._o3d.t.geometry.RGBDImage(image(np.ascontiguousarray(color)), image(z.copy())))

    def align(self, a: int, b: int, guesses: tuple[Array, ...]) -> _Edge | None:
        """The best alignment of view a to b from several first guesses of T_b_a; None where too few pixels pair up."""
        odometry = self._o3d.t.pipelines.odometry
        source, target = self._images[a], self._images[b]
        criteria = [odometry.OdometryConvergenceCriteria(n) for n in ITERATIONS]
        loss = odometry.OdometryLossParams(OUTLIER_DEPTH, HUBER_DEPTH, HUBER_INTENSITY)
        best = None
        for guess in guesses:
            try:
                found = odometry.rgbd_odometry_multi_scale(
                    source,
                    target,
                    self._K,
                    self._o3d.core.Tensor.from_numpy(np.ascontiguousarray(guess)),
                    1.0,
                    FAR_DEPTH,
                    criteria,
                    odometry.Method.Hybrid,
                    loss,
                )
            except RuntimeError:  # a singular system: too few pixels pair up from this guess
                continue
            if best is None or found.fitness > best.fitness:
                best = found
            if found.fitness > 2 * MIN_FITNESS:
                break
        if best is None or best.fitness < MIN_FITNESS:
            return None
        information = odometry.compute_odometry_information_matrix(
            source.depth, target.depth, self._K, best.transformation, PAIR_DISTANCE, 1.0, FAR_DEPTH
        )
        return _Edge(a, b, best.transformation.numpy(), information.numpy(), float(best.fitness))

    def loop_candidates(self, first: int, last: int) -> list[tuple[int, int]]:
        """Pairs (a, b) of views first..last that look alike and are at least LOOP_GAP apart."""
        pictures = np.stack(self._thumbnails[first : last + 1])
        likeness = pictures @ pictures.T
        pairs = list[tuple[int, int]]()
        for b in range(LOOP_GAP, len(pictures)):
            earlier = likeness[b, : b - LOOP_GAP + 1]
            for a in _peaks(earlier)[:LOOPS_A_VIEW]:
                pairs.append((first + a, first + b))
        return pairs


def _peaks(likeness: NDArray[np.float32]) -> list[int]:
    """Local maxima above LOOP_LIKENESS, best first."""
    padded = np.pad(likeness, 1, constant_values=-1.0)
    peak = (likeness >= padded[:-2]) & (likeness >= padded[2:]) & (likeness > LOOP_LIKENESS)
    rows = np.flatnonzero(peak)
    return [int(i) for i in rows[np.argsort(-likeness[rows])]]


def _longest_run(edges: list[_Edge | None]) -> tuple[int, int]:
    """First and last view of the longest run of neighbours that align."""
    best, start = (0, 0), 0
    for i, edge in enumerate([*edges, None]):
        if edge is None:
            if i - start > best[1] - best[0]:
                best = (start, i)
            start = i + 1
    return best


def _chained(edges: list[_Edge]) -> Array:
    """T_world_camera (len(edges) + 1, 4, 4), the first at the origin."""
    T = [np.eye(4)]
    for edge in edges:
        T.append(T[-1] @ inverse(edge.T_b_a))
    return np.array(T)


def _optimised(first: int, T: Array, chain: list[_Edge], loops: list[_Edge]) -> tuple[Array, int]:
    """Poses that all edges agree on best, and how many loops were kept."""
    import open3d as o3d

    registration = o3d.pipelines.registration
    graph = registration.PoseGraph()
    for pose in T:
        graph.nodes.append(registration.PoseGraphNode(pose))
    for e in (*chain, *loops):
        graph.edges.append(
            registration.PoseGraphEdge(e.a - first, e.b - first, e.T_b_a, e.information, uncertain=e.is_loop)
        )
    if not loops:
        return T, 0
    option = registration.GlobalOptimizationOption(
        max_correspondence_distance=PAIR_DISTANCE,
        edge_prune_threshold=0.25,
        preference_loop_closure=PREFER_LOOPS,
        reference_node=0,
    )
    registration.global_optimization(
        graph,
        registration.GlobalOptimizationLevenbergMarquardt(),
        registration.GlobalOptimizationConvergenceCriteria(),
        option,
    )
    kept = sum(edge.uncertain for edge in graph.edges)
    return np.array([node.pose for node in graph.nodes]), kept
