"""What marigold3d makes, as napari layers.

Axes are turned here and nowhere else. napari orders them (z, y, x): the project's own in reverse, so the columns are
reversed; `show_scene` lets z point away from the viewer, since napari's default towards would show a mirror image.

Frames (time, y, x in pixels) and the scene (z, y, x in scene units) do not share a world. `show_frames` and
`show_scene` switch between the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from marigold3d.detail import progressive_order
from marigold3d.store import Run
from marigold3d.types import PointCloud
from marigold3d.view import camera_lines
from marigold3d.viewpoint import overview, spacing

from ._preferences import preferences
from ._stacks import DepthStack, SigmaStack

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from marigold3d.video_array import VideoArray

LayerData = tuple[Any, dict[str, Any], str]

MAX_POINTS = (
    200_000  # shown at once unless the preferences say otherwise: more make the viewer slow; the file keeps all
)
POINT_SIZE = 1.6  # in point spacings
CLOSER = 1.12  # than napari stands, which leaves room for turning a box around all points
FRAME_AXES = ("time", "y", "x")
SCENE_AXES = ("z", "y", "x")
KIND = "marigold3d"  # metadata key: "frames" or "scene"
RUN = "marigold3d_run"  # metadata key: path of the run folder a layer shows
ROLE = "marigold3d_role"  # metadata key: what of the run it shows, "clip", "depth", "sigma", "cloud" or "cameras"
SHOWN = "marigold3d_shown"  # metadata key: whether to show it when its kind's turn comes
VIEW = "marigold3d_view"  # metadata key: where to look at the scene from


SCENE_ORIENTATION = ("away", "down", "right")  # of z, y, x, as the project has them


def to_zyx(points_xyz: NDArray[Any]) -> NDArray[np.float32]:
    """World points (..., 3) in napari's axis order."""
    return np.ascontiguousarray(points_xyz[..., ::-1], np.float32)


def as_vectors(lines_xyz: NDArray[Any]) -> NDArray[np.float32]:
    """(N, 2, 3) start and projection, as napari has it, of lines (N, 2, 3) from start to end."""
    vectors = to_zyx(lines_xyz)
    vectors[:, 1] -= vectors[:, 0]
    return vectors


def rgba(colors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 4) between 0 and 1, opaque, of uint8 RGB (N, 3)."""
    return np.column_stack([colors, np.full(len(colors), 255)]).astype(np.float32) / np.float32(255)


def video_layer(video: VideoArray) -> LayerData:
    """The clip as a lazy RGB image stack; `metadata["clip"]` is its path."""
    metadata = {KIND: "frames", ROLE: "clip", "clip": str(video.info.path), "fps": video.info.fps}
    options = {"name": video.info.path.stem, "rgb": True, "axis_labels": FRAME_AXES, "metadata": metadata}
    return video, {**options, "multiscale": False, "contrast_limits": (0, 255)}, "image"


def depth_layer(stack: DepthStack, units: str, size: tuple[int, ...] | None = None) -> LayerData:
    """Aligned depth over the clip, stretched over its `size` (height, width) in pixels."""
    return _map_layer(stack, "depth", "Spectral", units, size)


def sigma_layer(stack: SigmaStack, units: str, size: tuple[int, ...] | None = None) -> LayerData:
    """Standard deviation of the depth over the clip, like `depth_layer`, hidden at first."""
    data, options, kind = _map_layer(stack, "sigma", "magma", units, size)
    options["metadata"][SHOWN] = options["visible"] = False
    return data, options, kind


def _map_layer(stack: DepthStack, role: str, colormap: str, units: str, size: tuple[int, ...] | None) -> LayerData:
    metadata = {KIND: "frames", ROLE: role, "units": units}
    options = {"name": f"{role} [{units}]", "colormap": colormap, "contrast_limits": stack.depth_range()}
    where = placed(stack.shape[1:], size or stack.shape[1:])
    return stack, {**options, **where, "axis_labels": FRAME_AXES, "metadata": metadata, "multiscale": False}, "image"


def cloud_layer(cloud: PointCloud, name: str = "cloud", *, visible: bool = True, limit: int = MAX_POINTS) -> LayerData:
    """A cloud as points in their own colours, thinned evenly to `limit`, about what napari turns smoothly."""
    total = len(cloud)
    if total > limit:
        cloud = cloud.select(np.sort(progressive_order(cloud.points)[:limit]))
    colors = rgba(cloud.colors)
    options = {
        "name": name,
        "face_color": colors,
        "border_color": colors,  # points of a pixel or two are all border, however thin it is
        "size": POINT_SIZE * spacing(cloud.points),
        "border_width": 0,
        "antialiasing": 0,
        "visible": visible,
        "axis_labels": SCENE_AXES,
        "metadata": {KIND: "scene", ROLE: "cloud", "units": cloud.units, "points_in_file": total},
    }
    return to_zyx(cloud.points), options, "points"


def camera_layer(run: Run, cloud: PointCloud, *, visible: bool = True) -> LayerData:
    """The camera path and some frustums along it, as vectors: lines as shapes are slow to change."""
    trajectory = run.trajectory()
    vertices, edges = camera_lines(trajectory, run.camera(), cloud.points)
    lines = as_vectors(vertices[edges])
    options = {"edge_color": preferences().path_color, "edge_width": spacing(cloud.points), "vector_style": "line"}
    _, T_world_camera = overview(cloud.points, trajectory, 4, 3)
    view = {"view_direction": T_world_camera[:3, 2], "up_direction": -T_world_camera[:3, 1]}
    metadata = {
        KIND: "scene",
        ROLE: "cameras",
        VIEW: {name: tuple(map(float, to_zyx(axis))) for name, axis in view.items()},
    }
    scene = {"visible": visible, "axis_labels": SCENE_AXES, "metadata": metadata}
    return lines, {"name": "camera path", **options, **scene}, "vectors"


def run_layers(run: Run, *, scene: bool = False, limit: int = MAX_POINTS) -> list[LayerData]:
    """Layers of a run: clip (where it still is), depth, its sigma, cloud, camera path; frames visible, or the `scene`.

    limit: points of the cloud that are shown.
    """
    layers, video = [], clip_of(run)
    if video is not None:
        layers.append(video_layer(video))
    if run.frame_indices:
        count, size = (len(video), video.shape[1:3]) if video is not None else (None, None)
        units = run.encoding().units
        layers.append(depth_layer(DepthStack(run, count), units, size))
        if (run.path / "sigma").is_dir():
            layers.append(sigma_layer(SigmaStack(run, count), units, size))
    for _, options, _ in layers:
        options["visible"] = not scene and options.get("visible", True)
    if run.has_cloud:
        cloud = run.cloud()
        shown = scene or not layers
        layers.append(cloud_layer(cloud, visible=shown, limit=limit))
        if (run.path / "trajectory.txt").is_file() and len(cloud):
            layers.append(camera_layer(run, cloud, visible=shown))
    for _, options, _ in layers:
        options["metadata"][RUN] = str(run.path)
    return layers


def add_layers(viewer: ViewerModel, layers: list[LayerData]) -> None:
    """Add layers; a clip that is open already stays, parts of a run that are open are replaced."""
    for data, options, kind in layers:
        metadata = options["metadata"]
        clips = [v for v in viewer.layers if "clip" in metadata and v.metadata.get("clip") == metadata["clip"]]
        if clips:
            clips[0].metadata.update(metadata)
            clips[0].visible = options.get("visible", True)
            continue
        part = (metadata.get(RUN), metadata.get(ROLE))
        for layer in [
            v for v in viewer.layers if RUN in metadata and (v.metadata.get(RUN), v.metadata.get(ROLE)) == part
        ]:
            viewer.layers.remove(layer)
        getattr(viewer, f"add_{kind}")(data, **options)


def reload_maps(viewer: ViewerModel, run: Run) -> None:
    """Read the run's depth and sigma again into the layers that show them: after it got another scale."""
    units = run.encoding().units
    for layer in viewer.layers:
        role = layer.metadata.get(ROLE)
        if layer.metadata.get(RUN) == str(run.path) and role in ("depth", "sigma"):
            stack = (DepthStack if role == "depth" else SigmaStack)(run, len(layer.data))
            layer.data = stack
            layer.contrast_limits_range = layer.contrast_limits = stack.depth_range()
            layer.name, layer.metadata["units"] = f"{role} [{units}]", units


def show_scene(viewer: ViewerModel) -> None:
    """Show the 3D layers only, in 3D, from behind and above the latest camera path."""
    shown = _show(viewer, "scene", 3)
    # napari's own orientation lets the first axis come towards the viewer: a mirror image
    camera_of(viewer).orientation = SCENE_ORIENTATION
    directions = [layer.metadata[VIEW] for layer in shown if VIEW in layer.metadata]
    if directions:
        camera_of(viewer).set_view_direction(**directions[-1])
    _fit(viewer, shown)
    camera_of(viewer).zoom *= CLOSER


def camera_of(viewer: ViewerModel) -> Any:
    """The viewer's camera, which napari 0.9 moved into its scene."""
    scene = getattr(viewer, "scene", None)
    return viewer.camera if scene is None else scene.camera


def show_frames(viewer: ViewerModel) -> None:
    """Show the frame layers only, flat."""
    _fit(viewer, _show(viewer, "frames", 2))


def _show(viewer: ViewerModel, kind: str, ndisplay: int) -> list[Any]:
    """Show our layers of a kind as they were when last shown, hide the other kind, and return what is shown."""
    ours = [layer for layer in viewer.layers if KIND in layer.metadata]
    leaving = [layer for layer in ours if layer.metadata[KIND] != kind]
    if any(layer.visible for layer in leaving):
        for layer in leaving:
            layer.metadata[SHOWN] = layer.visible
    for layer in ours:
        layer.visible = layer.metadata[KIND] == kind and layer.metadata.get(SHOWN, True)
    viewer.dims.ndisplay = ndisplay
    return [layer for layer in ours if layer.visible]


def _fit(viewer: ViewerModel, shown: list[Any]) -> None:
    """Fill the canvas with these layers: the hidden ones live in another world, with other units."""
    if not shown:
        return
    try:
        viewer.fit_to_view(layers=shown)
    except (AttributeError, TypeError):  # older napari fits all layers
        viewer.reset_view()


def clip_of(run: Run) -> VideoArray | None:
    """The run's clip, None when it has moved or is a folder of images."""
    from marigold3d.errors import InputError
    from marigold3d.video_array import VideoArray

    clip = Path(run.manifest.get("clip") or "")
    for candidate in (run.path / clip, run.path.parent / clip.name, clip):
        if clip.name and candidate.is_file():
            try:
                return VideoArray(candidate)
            except InputError:
                return None
    return None


def placed(shape: tuple[int, ...], size: tuple[int, ...], time_step: float = 1) -> dict[str, Any]:
    """Scale and translation that stretch a (T, h, w) stack over a picture of `size`; 0 is a pixel's centre."""
    sy, sx = size[0] / shape[0], size[1] / shape[1]
    return {"scale": (time_step, sy, sx), "translate": (0, (sy - 1) / 2, (sx - 1) / 2)}
