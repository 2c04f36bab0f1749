"""A run's scene in the viewer: its cloud at the level of detail that fits, and the camera of the frame looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from marigold3d.cloud_colors import ColorBy, Coloring, color_cloud
from marigold3d.detail import nearby, progressive_order
from marigold3d.picking import Surfaces
from marigold3d.store import Run
from marigold3d.types import Array, PointCloud
from marigold3d.viewpoint import FRUSTUM_EDGES, along_ray, extent, pyramid, spacing

from ._layers import (
    KIND,
    MAX_POINTS,
    POINT_SIZE,
    ROLE,
    RUN,
    SCENE_AXES,
    SHOWN,
    VIEW,
    as_vectors,
    camera_layer,
    camera_of,
    clip_of,
    cloud_layer,
    rgba,
    to_zyx,
)
from ._writer import CLOUD

if TYPE_CHECKING:
    from napari.components import ViewerModel

CAMERA_COLOR = "#ffe14d"
UNSEEN = 0.35  # of their brightness is left to points that the frame looked at does not see
CAMERA_SIZE = 0.16  # of the scene's extent: the camera of the frame looked at
PICTURE_SIDE = 240  # px, of the frame in that camera
CANVAS_PX = 2000.0  # diagonal of a large window: what lies farther from the middle of the view is not seen
MOVED = 0.25  # of the view: less movement does not change the level of detail
REACH_PX = 6.0  # how far beside a point a click may be


@dataclass(frozen=True)
class Filter:
    """Which points are shown: at most so uncertain (scene units), seen by at least so many frames."""

    max_sigma: float = float("inf")
    min_observations: int = 0

    def keeps(self, cloud: PointCloud) -> NDArray[np.bool_]:
        """(N,); points of unknown sigma stay."""
        return ~(cloud.sigma > self.max_sigma) & (cloud.observations >= self.min_observations)


class SceneView:
    """The scene layers of one run. Knows no widgets, so it runs on a bare ViewerModel.

    Works on the layers of the run that are open, and adds those that are missing. InputError when the run has no cloud.
    """

    def __init__(self, viewer: ViewerModel, run: Run, limit: int = MAX_POINTS) -> None:
        self._viewer, self.run, self._limit = viewer, run, limit
        self.frames = run.frame_indices
        self.frame = self.frames[0] if self.frames else 0
        self.surfaces: Surfaces | None = None
        self.filter = Filter()
        self.by: ColorBy = "rgb"
        self.highlighted = False
        self._clip = clip_of(run)
        size = (run.camera().height, run.camera().width) if self._clip is None else self._clip.shape[1:3]
        self.frame_size: tuple[int, int] = (size[0], size[1])  # height, width
        self._seen: tuple[Array, Array | None, float] | None = None  # centre, direction, radius of the view
        self._layers: dict[str, Any] = {}
        self.reload()

    @property
    def clip_length(self) -> int | None:
        """Frames of the clip; None where it is gone."""
        return None if self._clip is None else len(self._clip)

    # -- the run's layers ---------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read cloud and cameras again, after an edit or a new scale, and show them in the layers there are."""
        self.cloud = self.run.cloud()
        self._order = progressive_order(self.cloud.points)
        posed = (self.run.path / "trajectory.txt").is_file() and len(self.cloud) > 0
        self.surfaces = Surfaces(self.run) if posed else None
        self.poses: dict[int, Array] = {}
        if posed:
            self.poses = dict(zip(self.frames, self.run.trajectory().T_world_camera, strict=True))
        self.extent = extent(self.cloud.points) if len(self.cloud) else 1.0
        self.coloring = color_cloud(self.cloud, self.by, self.poses)
        self._rows, self._outdated = self._chosen(), False
        cloud = self._find("cloud") or self._add("cloud", *self._thinned())
        self._show_rows(cloud)
        self._spacing = spacing(self.cloud.points[self._rows])
        cloud.size = POINT_SIZE * self._spacing
        cloud.metadata.update(units=self.cloud.units, points_in_file=len(self.cloud), **{CLOUD: self.filtered_cloud})
        if posed:
            self._replace_cameras()
            self.look_at(self.frame)

    def _thinned(self) -> tuple[Any, dict[str, Any], str]:
        return cloud_layer(self.cloud.select(self._rows), limit=self._limit)

    def _replace_cameras(self) -> None:
        """The camera path anew."""
        old = self._find("cameras")
        data, options, kind = camera_layer(self.run, self.cloud, visible=old is None or old.visible)
        if old is None:
            self._add("cameras", data, options, kind)
        else:
            old.data = data
            old.metadata[VIEW] = options["metadata"][VIEW]

    def _find(self, role: str) -> Any:
        """The run's layer of that role, None when it is not open."""
        path = str(self.run.path)
        known = self._layers.get(role)
        if known is not None and known in self._viewer.layers:
            return known
        found = [v for v in self._viewer.layers if v.metadata.get(RUN) == path and v.metadata.get(ROLE) == role]
        if found:
            self._layers[role] = found[0]
        return found[0] if found else None

    def _add(self, role: str, data: Any, options: dict[str, Any], kind: str) -> Any:
        """A new scene layer of this run."""
        metadata = {KIND: "scene", **options.get("metadata", {}), ROLE: role, RUN: str(self.run.path)}
        active = self._viewer.layers.selection.active
        layer = getattr(self._viewer, f"add_{kind}")(data, **{**options, "metadata": metadata})
        if active is not None:  # what was being worked with stays selected
            self._viewer.layers.selection.active = active
        self._layers[role] = layer
        return layer

    # -- what of the cloud is shown -----------------------------------------------------------------------------------

    def color_by(self, by: ColorBy) -> Coloring:
        """Colour the cloud by a property; UsageError when the run cannot tell it."""
        self.coloring = color_cloud(self.cloud, by, self.poses or None)
        self.by = by
        self._paint()
        return self.coloring

    def keep(self, wanted: Filter) -> int:
        """Show only points that the filter keeps; how many of the whole cloud those are."""
        self.filter = wanted
        kept = wanted.keeps(self.cloud)
        layer = self._find("cloud")
        self._outdated = True  # points that were left out may take the place of those that go, once the slider rests
        if layer is not None:
            layer.shown = kept[self._rows]
        return int(kept.sum())

    def filtered_cloud(self) -> PointCloud:
        """The whole cloud as the filter leaves it: what is exported."""
        return self.cloud.select(self.filter.keeps(self.cloud))

    def refine(self) -> bool:
        """Show more of what the view is close to, in a cloud too large to show whole. True when that changed anything.

        To be called when the view or the filter's sliders have come to rest.
        """
        if len(self.cloud) <= self._limit or self._viewer.dims.ndisplay != 3 or self._find("cloud") is None:
            return False
        camera = camera_of(self._viewer)
        centre = np.array(camera.center, float)[::-1]
        direction = np.array(camera.view_direction, float)[::-1]
        radius = 0.5 * CANVAS_PX / max(camera.zoom, 1e-9)
        seen = (centre, direction, radius) if radius < self.extent else None
        if not (self._moved(seen) or self._outdated):
            return False
        self._seen, self._outdated = seen, False
        self._rows = self._chosen()
        layer = self._find("cloud")
        self._show_rows(layer)
        layer.shown = self.filter.keeps(self.cloud)[self._rows]
        self._spacing = spacing(self.cloud.points[self._rows])
        layer.size = POINT_SIZE * self._spacing
        return True

    def _moved(self, seen: tuple[Array, Array | None, float] | None) -> bool:
        """Whether a view differs enough from the one that the shown points were chosen for."""
        if seen is None or self._seen is None:
            return seen is not self._seen
        (centre, direction, radius), (before, direction_before, radius_before) = seen, self._seen
        turned = float(np.dot(direction, direction_before))  # type: ignore[arg-type]  # both are unit vectors
        shift = float(np.linalg.norm(centre - before))
        return shift > MOVED * radius or abs(np.log(radius / radius_before)) > MOVED or turned < 1 - MOVED / 4

    def _chosen(self) -> NDArray[np.int64]:
        """Rows of the cloud to show: the coarsest of those that are kept and in view."""
        if len(self.cloud) <= self._limit:
            return np.arange(len(self.cloud))
        wanted = self.filter.keeps(self.cloud)
        if self._seen is not None:
            wanted &= nearby(self.cloud.points, *self._seen)
        return np.sort(self._order[wanted[self._order]][: self._limit])

    def _show_rows(self, layer: Any) -> None:
        layer.data = to_zyx(self.cloud.points[self._rows])
        if not layer.visible:
            layer.set_view_slice()  # hidden layers keep indices of the old points, and colours are looked up by them
        self._paint()

    def _paint(self) -> None:
        """Give the shown points their colours, darker where the frame looked at does not see them."""
        layer = self._find("cloud")
        if layer is None:
            return
        colors = rgba(self.coloring.colors[self._rows])
        if self.highlighted and self.surfaces is not None:
            colors[~self.surfaces.visible(self.cloud.points[self._rows], self.frame), :3] *= UNSEEN
        with layer.events.blocker_all():  # one update of the canvas, not one for each kind of colour
            layer.face_color = layer.border_color = colors
        layer.refresh()

    # -- the frame looked at ------------------------------------------------------------------------------------------

    def nearest_frame(self, frame: float) -> int:
        """The used frame nearest to a source frame."""
        return min(self.frames, key=lambda f: abs(f - frame)) if self.frames else 0

    def look_at(self, frame: int) -> None:
        """Move the drawn camera, and its picture, to the used frame nearest to `frame`."""
        self.frame = self.nearest_frame(frame)
        T = self.poses.get(self.frame)
        if T is None:
            return
        corners = pyramid(T, self.run.camera(), CAMERA_SIZE * self.extent)
        lines = as_vectors(corners[FRUSTUM_EDGES])  # (8, 2, 3)
        layer = self._find("camera")
        if layer is None:
            width = 0.8 * spacing(self.cloud.points)
            options = {"name": "camera", "edge_color": CAMERA_COLOR, "edge_width": width, "vector_style": "line"}
            self._add("camera", lines, {**options, "axis_labels": SCENE_AXES, **self._as_scene()}, "vectors")
        else:
            layer.data = lines
        self._picture(corners)

    def _picture(self, corners: Array) -> None:
        """The frame itself, as the far end of its camera; nothing where the clip is gone."""
        if self._clip is None or self.frame >= len(self._clip):
            return
        rgb = self._clip[self.frame]
        step = max(1, max(rgb.shape[:2]) // PICTURE_SIDE)
        vertices, faces = to_zyx(corners[1:]), np.array([[0, 1, 2], [0, 2, 3]])
        layer = self._find("picture")
        if layer is None:
            corner_uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)  # of textures the lower edge is 0
            look = {"texture": rgb[::step, ::step], "texcoords": corner_uv, "shading": "none", "name": "frame"}
            self._add("picture", (vertices, faces), {**look, "axis_labels": SCENE_AXES, **self._as_scene()}, "surface")
        else:
            layer.data = (vertices, faces)
            layer.texture = rgb[::step, ::step]

    def highlight(self, wanted: bool = True) -> None:
        """Whether to darken what the frame looked at does not see; to be called again when the frame has changed.

        It takes longer than moving the camera, so callers wait for the slider to rest.
        """
        if wanted or self.highlighted:
            self.highlighted = wanted
            self._paint()

    def _as_scene(self) -> dict[str, Any]:
        """Visible when the scene is, else when its turn comes."""
        cloud = self._find("cloud")
        return {"visible": bool(cloud is not None and cloud.visible), "metadata": {SHOWN: True}}

    # -- clicks -------------------------------------------------------------------------------------------------------

    def point_under(self, position_zyx: Array, direction_zyx: Array) -> Array | None:
        """The world point (3,) of the cloud that a click's line of sight meets first, None when it meets none."""
        shown = self._rows[self.filter.keeps(self.cloud)[self._rows]]
        reach = max(REACH_PX / max(camera_of(self._viewer).zoom, 1e-9), self._spacing)
        origin, direction = np.asarray(position_zyx)[::-1], np.asarray(direction_zyx)[::-1]
        hit = along_ray(self.cloud.points[shown], origin, direction, reach)
        return None if hit is None else self.cloud.points[shown[hit]].astype(float)

    def close(self) -> None:
        """Take away what was added beside the run's own layers."""
        for role in ("camera", "picture"):
            layer = self._find(role)
            if layer is not None:
                self._viewer.layers.remove(layer)
        if self._clip is not None:
            self._clip.close()
