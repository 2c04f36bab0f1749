"""The scene, its marks, masks and known depths in the viewer, on a bare ViewerModel: no Qt, no window."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed: pip install 'marigold3d[napari]'")
if find_spec("marigold3d.napari_plugin") is None:
    pytest.skip("the plugin is part of the installed package: pip install -e .", allow_module_level=True)

from marigold3d.napari_plugin._cue_points import is_cue_layer, new_cue_layer, write_cues
from marigold3d.napari_plugin._layers import (
    ROLE,
    RUN,
    add_layers,
    camera_of,
    reload_maps,
    run_layers,
    show_frames,
    show_scene,
)
from marigold3d.napari_plugin._masks import new_mask_layer, painted
from marigold3d.napari_plugin._ruler import Ruler
from marigold3d.napari_plugin._scene import UNSEEN, Filter, SceneView

from marigold3d.errors import GeometryError, UsageError
from marigold3d.export.ply import read_ply, write_ply
from marigold3d.rescale import rescale
from marigold3d.store import Run
from tests.gui import CAMERA, HEIGHT, WIDTH, make_clip, make_run


@pytest.fixture
def saved(tmp_path: Path) -> Run:
    return make_run(tmp_path / "clip_3d", make_clip(tmp_path / "clip.mp4"))


@pytest.fixture
def model():
    from napari.components import ViewerModel

    return ViewerModel()


@pytest.fixture
def scene(model, saved):
    add_layers(model, run_layers(saved, scene=True))
    show_scene(model)
    return SceneView(model, saved)


def layer(model, role: str):
    (found,) = [v for v in model.layers if v.metadata.get(ROLE) == role]
    return found


# -- layers -------------------------------------------------------------------------------------------------------


def test_a_run_is_open_once(model, saved):
    for _ in range(2):
        add_layers(model, run_layers(saved))
    assert sorted(v.metadata[ROLE] for v in model.layers) == ["cameras", "clip", "cloud", "depth", "sigma"]
    assert {v.metadata[RUN] for v in model.layers} == {str(saved.path)}


def test_what_was_hidden_stays_hidden_when_its_turn_comes(model, saved):
    add_layers(model, run_layers(saved))
    show_scene(model)
    show_frames(model)
    assert not layer(model, "sigma").visible
    assert layer(model, "depth").visible
    layer(model, "depth").visible, layer(model, "sigma").visible = False, True
    show_scene(model)
    show_frames(model)
    assert layer(model, "sigma").visible
    assert not layer(model, "depth").visible


# -- the cloud ----------------------------------------------------------------------------------------------------


def test_the_scene_works_on_the_layers_that_are_open(model, scene):
    assert sorted(v.metadata[ROLE] for v in model.layers if v.metadata.get("marigold3d") == "scene") == [
        *("camera", "cameras", "cloud", "picture")
    ]
    scene.close()
    assert {v.metadata[ROLE] for v in model.layers} == {"clip", "depth", "sigma", "cloud", "cameras"}


@pytest.mark.parametrize("by", ["rgb", "depth", "sigma", "observations", "time", "height"])
def test_colours_reach_the_points(model, scene, by):
    found = scene.color_by(by)
    assert np.allclose(layer(model, "cloud").face_color[:, :3] * 255, found.colors, atol=1e-3)


def test_filters_hide_points_and_keep_them_from_the_export(model, saved):
    cloud = saved.cloud()
    cloud.sigma[:] = np.linspace(0.01, 0.1, len(cloud))
    cloud.observations[:] = np.arange(len(cloud)) % 3 + 1
    write_ply(saved.path / "cloud.ply", cloud)
    scene = SceneView(model, saved)
    kept = scene.keep(Filter(0.055, 2))
    expected = (cloud.sigma <= 0.055) & (cloud.observations >= 2)
    assert kept == expected.sum()
    assert np.array_equal(layer(model, "cloud").shown, expected)
    assert np.array_equal(scene.filtered_cloud().points, cloud.points[expected])
    assert scene.keep(Filter()) == len(cloud)


def test_points_that_go_make_room_in_a_large_cloud(model, saved):
    cloud = saved.cloud()
    cloud.sigma[:] = np.linspace(0.01, 0.1, len(cloud))
    write_ply(saved.path / "cloud.ply", cloud)
    scene = SceneView(model, saved, limit=200)
    show_scene(model)
    scene.keep(Filter(0.055))
    shown = layer(model, "cloud")
    assert 0 < shown.shown.sum() < 150
    assert scene.refine()
    assert shown.shown.sum() == len(shown.data) == 200
    known = {tuple(p) for p in cloud.points[cloud.sigma <= 0.055].tolist()}
    assert {tuple(p) for p in shown.data[:, ::-1].tolist()} <= known


def test_a_large_cloud_gains_detail_where_one_looks(model, saved):
    scene = SceneView(model, saved, limit=200)
    shown = layer(model, "cloud")
    assert len(shown.data) == 200
    show_scene(model)
    scene.refine()
    whole = np.ptp(shown.data, axis=0)
    target = scene.cloud.points[len(scene.cloud) // 2]
    camera = camera_of(model)
    camera.center, camera.zoom = target[::-1], 2000 / (0.25 * scene.extent)
    assert scene.refine()
    assert len(shown.data) == 200
    near = np.linalg.norm(scene.cloud.points - target, axis=1) < 0.06 * scene.extent
    shown_near = np.linalg.norm(shown.data[:, ::-1] - target, axis=1) < 0.06 * scene.extent
    assert shown_near.sum() > 2 * 200 / len(scene.cloud) * near.sum(), "no more than the thinned cloud has there"
    assert (np.ptp(shown.data, axis=0) < whole).any()
    assert not scene.refine(), "the same view changes nothing"
    colors = {tuple(p): tuple(c) for p, c in zip(scene.cloud.points[:, ::-1].tolist(), scene.cloud.colors, strict=True)}
    for point, rgba in zip(shown.data.tolist(), shown.face_color, strict=True):
        assert np.allclose(rgba[:3] * 255, colors[tuple(point)], atol=1e-3), "colours follow their points"


# -- the frame looked at --------------------------------------------------------------------------------------------


def test_the_camera_follows_the_frame(model, scene, saved):
    centres = saved.trajectory().centres
    for row, frame in enumerate(saved.frame_indices):
        scene.look_at(frame)
        lines = layer(model, "camera").data
        assert np.allclose(lines[0, 0, ::-1], centres[row], atol=1e-6), "every edge from the centre starts there"
        picture = layer(model, "picture").vertices[:, ::-1]
        z = picture[:, 2] - centres[row, 2]
        u = CAMERA.fx * (picture[:, 0] - centres[row, 0]) / z + CAMERA.cx
        assert np.allclose(np.sort(u), [0, 0, WIDTH, WIDTH], atol=1e-3), "the picture fills the camera's view"
    scene.look_at(3)
    assert scene.frame in (2, 4), "a frame that was not used shows its neighbour"


def test_what_the_frame_does_not_see_is_darker(model, scene):
    scene.look_at(scene.frames[0])
    scene.highlight()
    seen = scene.surfaces.visible(scene.cloud.points, scene.frame)
    assert 0 < seen.sum() < len(seen)
    colors = layer(model, "cloud").face_color[:, :3] * 255
    assert np.allclose(colors[seen], scene.cloud.colors[seen], atol=1e-3)
    assert np.allclose(colors[~seen], UNSEEN * scene.cloud.colors[~seen], atol=1e-3)
    assert np.array_equal(layer(model, "cloud").border_color, layer(model, "cloud").face_color)
    scene.highlight(False)
    assert np.allclose(layer(model, "cloud").face_color[:, :3] * 255, scene.cloud.colors, atol=1e-3)


# -- marks and lengths --------------------------------------------------------------------------------------------


def test_a_pixel_and_its_point_mark_each_other(model, scene):
    ruler = Ruler(model, scene)
    uv = (20.5, 24.5)
    marked = ruler.mark_pixel(scene.frame, uv)
    assert np.allclose(model.layers["marks"].data[0, ::-1], marked.point, atol=1e-5)
    assert np.allclose(model.layers["marks in the frame"].data[0] + 0.5, uv[::-1], atol=1e-3)
    ruler.clear()
    ruler.mark_point(marked.point)
    assert np.allclose(model.layers["marks in the frame"].data[0] + 0.5, uv[::-1], atol=1e-3)


def test_marks_move_with_the_frame(model, scene):
    ruler = Ruler(model, scene)
    ruler.mark_pixel(scene.frames[0], (30.5, 24.5))
    first = model.layers["marks in the frame"].data[0, 1]
    scene.look_at(scene.frames[-1])
    ruler.follow()
    shift = CAMERA.fx * 0.4 / 1.0  # the camera has moved 0.4 to the right; the box is at depth 1
    assert np.isclose(first - model.layers["marks in the frame"].data[0, 1], shift, atol=0.1)


def test_two_marks_are_a_length(model, scene):
    ruler = Ruler(model, scene)
    assert ruler.length() is None
    ruler.mark_pixel(2, (4.5, 40.5))
    ruler.mark_pixel(2, (14.5, 40.5))  # ten pixels on the wall at 2 m
    length, sigma = ruler.length()
    assert np.isclose(length, 10 * 2 / CAMERA.fx, rtol=1e-3)
    assert 0 < sigma < length
    assert "±" in ruler.text()
    assert model.layers["ruler"].data.shape == (1, 2, 3)
    ruler.mark_pixel(2, (20.5, 40.5))
    assert len(ruler.points) == 1, "a third mark begins anew"
    assert not len(model.layers["ruler"].data)
    ruler.close()
    assert "marks" not in model.layers


def test_a_click_takes_the_nearest_point_in_sight(model, scene):
    camera_of(model).zoom = 500
    wall_and_box = np.array([0.0, 0.0])
    hit = scene.point_under(np.array([-5, *wall_and_box]), np.array([1.0, 0, 0]))
    assert np.isclose(hit[2], 1, atol=1e-2), "the box hides the wall"
    assert scene.point_under(np.array([-5.0, 90, 90]), np.array([1.0, 0, 0])) is None


def test_nothing_to_mark_where_nothing_is_known(model, scene, saved):
    ruler = Ruler(model, scene)
    with pytest.raises(GeometryError):
        ruler.mark_pixel(2, (30.5, -9.5))  # beside the picture
    with pytest.raises(UsageError):
        ruler.mark_pixel(3, (30.5, 20.5))  # not a used frame
    with pytest.raises(UsageError, match="two ends"):
        ruler.measurement(1.0)
    (saved.path / "trajectory.txt").unlink()
    with pytest.raises(GeometryError, match="camera path"):
        Ruler(model, SceneView(model, saved)).mark_pixel(2, (30.5, 20.5))


def test_a_true_length_scales_everything_that_is_shown(model, scene, saved):
    ruler = Ruler(model, scene)
    ruler.mark_pixel(2, (4.5, 40.5))
    ruler.mark_pixel(2, (14.5, 40.5))
    before, _ = ruler.length()
    extent, depth = np.ptp(layer(model, "cloud").data, axis=0), layer(model, "depth").data[2][20, 5]
    rescale(saved, [ruler.measurement(3 * before)])
    ruler.clear()
    scene.run = Run.open(saved.path)
    scene.reload()
    reload_maps(model, scene.run)
    assert np.allclose(np.ptp(layer(model, "cloud").data, axis=0), 3 * extent, rtol=1e-3)
    assert np.isclose(layer(model, "depth").data[2][20, 5], 3 * depth, rtol=1e-3)
    assert layer(model, "depth").name == "depth [m]"
    ruler.mark_pixel(2, (4.5, 40.5))
    ruler.mark_pixel(2, (14.5, 40.5))
    assert np.isclose(ruler.length()[0], 3 * before, rtol=2e-3)
    assert read_ply(saved.path / "cloud.ply").units == "m"


# -- masks --------------------------------------------------------------------------------------------------------


SIZE = (2 * HEIGHT, 2 * WIDTH)  # of the clip's frames, when depth maps are half as large


def test_painted_labels_are_masks(model):
    labels = new_mask_layer(model, 6, (HEIGHT, WIDTH), SIZE)
    labels.data[2, 10:20, 30:50] = 1
    masks = painted(labels, (HEIGHT, WIDTH), SIZE, 0)
    assert list(masks) == [2]
    assert np.array_equal(masks[2], labels.data[2] > 0)
    fine = model.add_labels(np.repeat(np.repeat(labels.data, 2, 1), 2, 2))  # one label a pixel of the clip
    assert np.array_equal(painted(fine, (HEIGHT, WIDTH), SIZE, 0)[2], masks[2])
    flat = model.add_labels(fine.data[2])
    assert np.array_equal(painted(flat, (HEIGHT, WIDTH), SIZE, 4)[4], masks[2])


def test_drawn_shapes_are_masks(model):
    box = np.array([[2, 19.5, 59.5], [2, 19.5, 99.5], [2, 39.5, 99.5], [2, 39.5, 59.5]])  # px of the clip
    shapes = model.add_shapes([box, box + [1, 0, 0]], shape_type=["rectangle", "ellipse"])
    masks = painted(shapes, (HEIGHT, WIDTH), SIZE, 0)
    assert list(masks) == [2, 3]
    rectangle = np.zeros((HEIGHT, WIDTH), bool)
    rectangle[10:20, 30:50] = True
    assert np.logical_xor(masks[2], rectangle).sum() <= 60, "right to half a pixel along the outline"
    assert masks[2][rectangle].all()
    assert np.isclose(masks[3].sum(), np.pi / 4 * rectangle.sum(), rtol=0.25)
    assert masks[3][15, 40]
    assert not masks[3][10, 30]


def test_only_what_is_painted_counts(model):
    with pytest.raises(UsageError, match="nothing is painted"):
        painted(new_mask_layer(model, 6, (HEIGHT, WIDTH), SIZE), (HEIGHT, WIDTH), SIZE, 0)
    with pytest.raises(UsageError, match="no Labels or Shapes"):
        painted(model.add_points(np.zeros((1, 3))), (HEIGHT, WIDTH), SIZE, 0)


# -- known depths ---------------------------------------------------------------------------------------------------


def test_points_with_depths_become_a_table_of_cues(model, tmp_path):
    points = new_cue_layer(model, 2.0)
    assert is_cue_layer(points)
    points.add([[0, 10, 20]])
    points.feature_defaults = {"depth_m": 3.5}
    points.add([[4, 11, 21.25]])
    assert write_cues(points, tmp_path / "cues.csv") == 2
    rows = list(csv.DictReader((tmp_path / "cues.csv").open()))
    assert [tuple(map(float, r.values())) for r in rows] == [(0, 20.5, 10.5, 2.0), (4, 21.75, 11.5, 3.5)]


def test_cues_must_have_depths(model, tmp_path):
    points = new_cue_layer(model, 2.0)
    with pytest.raises(UsageError, match="click points"):
        write_cues(points, tmp_path / "cues.csv")
    points.add([[0, 10, 20]])
    points.features = {"depth_m": [0.0]}
    with pytest.raises(UsageError, match="above zero"):
        write_cues(points, tmp_path / "cues.csv")
    assert not (tmp_path / "cues.csv").exists()
