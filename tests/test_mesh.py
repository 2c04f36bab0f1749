"""Meshes: they lie on the surfaces, whatever holds the field, and a finished run gets, keeps and loses its own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marigold3d.camera import ray_grid
from marigold3d.cli import main
from marigold3d.config import FusionConfig
from marigold3d.edits import refuse
from marigold3d.errors import GeometryError, InputError, OutputError, UsageError
from marigold3d.export.depth_maps import DepthEncoding, write_depth_png, write_encoding
from marigold3d.export.mesh_ply import read_mesh_ply, write_mesh_ply
from marigold3d.export.trajectories import write_tum
from marigold3d.fusion import FusionInput, blocks, surface
from marigold3d.fusion.blocks import COLUMNS, HALF, SIDE, VOXELS, BlockStore, coords_of, keys_of
from marigold3d.fusion.mesh import MeshReport, fuse_mesh
from marigold3d.fusion.surface import extract_surface, simplified, without_small_parts
from marigold3d.fusion.tsdf import OFFSETS, TsdfVolume
from marigold3d.meshing import mesh_run
from marigold3d.progress import run as drive
from marigold3d.rigid import transform
from marigold3d.store import Run
from marigold3d.types import DepthMap, Trajectory, TriangleMesh
from tests import synthetic
from tests.gui import make_run

VOXEL = 0.04
pytest.importorskip("open3d")


@pytest.fixture(scope="module")
def clip() -> synthetic.Clip:
    return synthetic.Clip(synthetic.camera(160, 120), synthetic.walk(6, length=0.8))


def meshed(
    clip: synthetic.Clip, maps: list[DepthMap], folder: Path, triangles: int | None = None, **settings: float
) -> tuple[TriangleMesh, MeshReport]:
    rows = np.arange(len(maps))
    views = FusionInput(rows, 10 * rows, clip.T_world_camera[rows], maps.__getitem__, clip.camera, "m")
    config = FusionConfig(**{"voxel": VOXEL, **settings})  # type: ignore[arg-type]
    colors = ((int(r), clip.frames[r][0]) for r in rows)
    return drive(fuse_mesh(views, colors, config, folder / "blocks", triangles))


@pytest.fixture(scope="module")
def mesh(clip: synthetic.Clip, tmp_path_factory: pytest.TempPathFactory) -> TriangleMesh:
    return meshed(clip, synthetic.depth_maps(clip), tmp_path_factory.mktemp("mesh"))[0]


def corners(mesh: TriangleMesh) -> np.ndarray:
    """(F, 9) the triangles by their places, in an order of their own."""
    return np.unique(mesh.vertices[mesh.faces].reshape(-1, 9), axis=0)


# -- the field --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(*[st.integers(1 - HALF, HALF - 1)] * 3), max_size=20))
def test_a_key_is_a_block(coords: list[tuple[int, int, int]]) -> None:
    array = np.array(coords, np.int64).reshape(-1, 3)
    np.testing.assert_array_equal(coords_of(keys_of(array)), array)
    assert len(set(keys_of(array).tolist())) == len(set(coords))


def test_a_scene_too_large_for_its_voxels_is_refused() -> None:
    with pytest.raises(GeometryError, match="--voxel"):
        keys_of(np.array([[0, HALF, 0]]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_blocks_keep_what_is_written_in_memory_and_in_files(
    tmp_path_factory: pytest.TempPathFactory, seed: int, in_memory: int
) -> None:
    """Like a dictionary, whatever the order in which blocks are asked for."""
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("blocks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CHUNK", 4)
        store, known = BlockStore(folder, in_memory), dict[int, np.ndarray]()
        for _ in range(6):
            keys = rng.choice(40, rng.integers(1, 9), replace=False).astype(np.int64)
            rows = store.rows(keys)
            for key, values in zip(keys.tolist(), store.read(rows), strict=True):
                np.testing.assert_array_equal(values, known.get(key, np.zeros((COLUMNS, VOXELS))))
            fresh = rng.normal(size=(len(keys), COLUMNS, VOXELS)).astype(np.float32)
            store.write(rows, fresh)
            known.update(zip(keys.tolist(), fresh, strict=True))
        assert store.keys.tolist() == sorted(known)
        assert len(store) == len(known)
        np.testing.assert_array_equal(store.has(np.arange(50)), np.isin(np.arange(50), list(known)))
        assert len(list(folder.glob("*.blocks"))) == max(0, -(-len(known) // 4) - in_memory)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutputError, match="disk"):
        BlockStore(tmp_path / "blocks", in_memory=0).rows(np.array([1]))


def test_a_voxel_holds_the_weighted_mean_of_its_distances(tmp_path: Path) -> None:
    """A wall at 1.00 and the same wall seen at 1.02 with three times the sigma: weights 1 and 1/9."""
    camera, store = synthetic.camera(64, 48), BlockStore(tmp_path)
    volume = TsdfVolume(0.02, store, sigma_share=0.01)
    rgb = np.full((48, 64, 3), 90, np.uint8)
    for z, share in ((1.00, 0.01), (1.02, 0.03)):
        depth = np.full((48, 64), z, np.float32)
        volume.integrate(DepthMap(depth, depth > 0, share * depth), rgb, camera, np.eye(4))
    values = store.read(store.rows(store.keys))
    z = 0.02 * (SIDE * coords_of(store.keys)[:, None, 2] + OFFSETS[None, :, 2])
    both = (values[:, 1] > 1.01) & (np.abs(z - 1) < 0.09)
    assert both.sum() > 1000
    np.testing.assert_allclose(values[:, 1][both], 1 + 1 / 9, rtol=1e-4)
    np.testing.assert_allclose(values[:, 0][both], ((1.00 - z) + (1.02 - z) / 9)[both] / (1 + 1 / 9), atol=1e-5)
    np.testing.assert_allclose(values[:, 2:].transpose(0, 2, 1)[both], 90, rtol=1e-5)
    assert values[:, 0].max() <= volume.truncation + 1e-6
    behind = (values[:, 1] > 0) & (z > 1.02 + volume.truncation + 1e-3)
    assert not behind.any(), "nothing is known behind a surface"


@pytest.mark.parametrize("voxel", [0.005, 0.02, 0.1])
def test_a_wall_has_no_holes_however_fine_the_voxels(tmp_path: Path, voxel: float) -> None:
    """A slanted wall, a pixel of which is 3 to 0.1 voxels wide: blocks are made all over it."""
    camera, store = synthetic.camera(96, 72), BlockStore(tmp_path)
    rays = ray_grid(camera).astype(float)
    z = (1.2 / (1 - 0.6 * rays[..., 0])).astype(np.float32)  # of the plane z = 1.2 + 0.6 x
    rgb = np.full((72, 96, 3), 90, np.uint8)
    TsdfVolume(voxel, store, 0.01).integrate(DepthMap(z, z > 0, 0.01 * z), rgb, camera, np.eye(4))
    found = drive(extract_surface(store, voxel, 0.5, "m"))
    a, b, c = np.moveaxis(found.vertices[found.faces].astype(float), 1, 0)
    area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1).sum()
    corners = (rays * z[..., None])[[2, 2, -3, -3], [2, -3, -3, 2]]
    whole = sum(
        0.5 * np.linalg.norm(np.cross(corners[i] - corners[0], corners[j] - corners[0])) for i, j in ((1, 2), (2, 3))
    )
    assert area > 0.97 * whole - 4 * voxel * np.sqrt(whole), "but for a seam of some voxels"


def test_the_order_of_voxels_is_open3ds(tmp_path: Path) -> None:
    """A field that is zero at x + 2 y + 4 z = 3 voxels has its surface there."""
    store = BlockStore(tmp_path)
    keys = np.sort(keys_of(np.stack(np.meshgrid(*[(-1, 0)] * 3), -1).reshape(-1, 3)))
    rows = store.rows(keys)
    place = SIDE * coords_of(keys)[:, None] + OFFSETS
    values = np.ones((len(keys), COLUMNS, VOXELS), np.float32)
    values[:, 0] = place @ [1.0, 2.0, 4.0] - 3
    store.write(rows, values)
    found = drive(extract_surface(store, 0.5, 0.5, "m"))
    assert len(found) > 50
    np.testing.assert_allclose(found.vertices @ [2.0, 4.0, 8.0], 3, atol=1e-4)


# -- the surface ------------------------------------------------------------------------------------------------------


def test_the_mesh_lies_on_the_surfaces(mesh: TriangleMesh, clip: synthetic.Clip) -> None:
    distance = synthetic.distance_to_surface(mesh.vertices.astype(float))
    assert len(mesh) > 5000
    assert np.median(distance) < 0.05 * VOXEL
    assert np.quantile(distance, 0.99) < VOXEL
    truth = synthetic.colour_of(mesh.vertices.astype(float)) * 255
    assert np.median(np.abs(mesh.colors - truth)) < 25, "voxels are coarser than the texture"
    assert mesh.units == "m"


def test_normals_and_triangles_face_the_cameras(mesh: TriangleMesh, clip: synthetic.Clip) -> None:
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-3)
    to_camera = clip.T_world_camera[3, :3, 3] - mesh.vertices
    assert (np.einsum("vi,vi->v", to_camera, mesh.normals) > 0).mean() > 0.99
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces].astype(float), 1, 0)
    outward = np.einsum("fi,fi->f", np.cross(b - a, c - a), mesh.normals[mesh.faces[:, 0]])
    assert (outward > 0).mean() > 0.99


def test_the_world_may_be_turned(mesh: TriangleMesh, clip: synthetic.Clip, tmp_path: Path) -> None:
    """The lattice of voxels lies otherwise, the surface does not."""
    T = synthetic.look((3.0, -1.0, 0.4), 0.7, 0.3, -0.2)
    turned = synthetic.Clip(clip.camera, T @ clip.T_world_camera)
    turned.__dict__["frames"] = clip.frames
    other, _ = meshed(turned, synthetic.depth_maps(clip), tmp_path)
    back = transform(np.linalg.inv(T), other.vertices.astype(float))
    assert np.median(synthetic.distance_to_surface(back)) < 0.05 * VOXEL
    assert len(other) == pytest.approx(len(mesh), rel=0.25)


def test_an_uncertain_view_hardly_moves_the_surface(clip: synthetic.Clip, tmp_path: Path) -> None:
    """One view of six says 2 % too far, with a sigma four times that of the rest, then with the same one."""
    off = []
    for sigma in (0.04, 0.01):
        maps = [
            DepthMap((z * (1.02 if i == 2 else 1)).astype(np.float32), z > 0, (sigma if i == 2 else 0.01) * z)
            for i, (_, z) in enumerate(clip.frames)
        ]
        found, _ = meshed(clip, maps, tmp_path, max_sigma=0.1)
        off.append(float(np.mean(synthetic.distance_to_surface(found.vertices.astype(float)))))
    assert off[0] < 0.5 * off[1]


@pytest.mark.parametrize("slab", [3, 40])
def test_slabs_and_files_make_the_same_mesh(
    mesh: TriangleMesh, clip: synthetic.Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab: int
) -> None:
    """A field that memory does not hold, looked at in pieces: not a triangle more or less."""
    monkeypatch.setattr(surface, "SLAB", slab)
    monkeypatch.setattr(blocks, "CHUNK", 16)
    monkeypatch.setattr("marigold3d.fusion.mesh.BlockStore", lambda folder: BlockStore(folder, in_memory=1))
    pieced, report = meshed(clip, synthetic.depth_maps(clip), tmp_path)
    assert report.blocks > 2 * slab
    np.testing.assert_array_equal(corners(pieced), corners(mesh))
    assert len(pieced.vertices) == len(mesh.vertices), "slabs are sewn together"
    assert not (tmp_path / "blocks").exists()


def test_small_parts_are_dropped(mesh: TriangleMesh) -> None:
    crumb = replace(mesh, vertices=mesh.vertices + np.float32(9)).select(np.arange(7))
    both = TriangleMesh(
        np.concatenate([mesh.vertices, crumb.vertices]),
        np.concatenate([mesh.faces, crumb.faces + np.int32(len(mesh.vertices))]),
        np.concatenate([mesh.normals, crumb.normals]),
        np.concatenate([mesh.colors, crumb.colors]),
    )
    assert without_small_parts(both, 100).vertices.max() < 8
    assert len(without_small_parts(both, 1)) == len(both)
    assert len(without_small_parts(crumb, 100)) > 0, "the largest part stays"


def test_simplification_keeps_shape_and_bound(mesh: TriangleMesh) -> None:
    small = simplified(mesh, len(mesh) // 8)
    assert 0.7 * len(mesh) // 8 < len(small) <= len(mesh) // 8
    distance = synthetic.distance_to_surface(small.vertices.astype(float))
    assert np.median(distance) < 0.15 * VOXEL
    assert simplified(mesh, 10 * len(mesh)) is mesh


def test_nothing_to_mesh_says_so(clip: synthetic.Clip, tmp_path: Path) -> None:
    maps = [DepthMap(z, np.arange(z.size).reshape(z.shape) % 400 == 0, 0.01 * z) for _, z in clip.frames]
    with pytest.raises(GeometryError, match="--voxel"):
        meshed(clip, maps, tmp_path)
    with pytest.raises(UsageError, match="4 triangles"):
        meshed(clip, maps, tmp_path, triangles=2)


# -- files and runs ---------------------------------------------------------------------------------------------------


def test_a_ply_comes_back_to_the_bit_and_trimesh_reads_it(mesh: TriangleMesh, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    write_mesh_ply(tmp_path / "m.ply", mesh)
    again = read_mesh_ply(tmp_path / "m.ply")
    for name in ("vertices", "faces", "normals", "colors"):
        np.testing.assert_array_equal(getattr(again, name), getattr(mesh, name))
    assert again.units == "m"
    other = trimesh.load(tmp_path / "m.ply", process=False)
    np.testing.assert_array_equal(other.vertices.astype(np.float32), mesh.vertices)
    np.testing.assert_array_equal(other.faces, mesh.faces)
    np.testing.assert_array_equal(other.visual.vertex_colors[:, :3], mesh.colors)


@pytest.mark.parametrize("harm", [lambda b: b[:-5], lambda b: b"ply\nformat ascii 1.0\nend_header\n", lambda b: b""])
def test_damaged_meshes_are_one_line(mesh: TriangleMesh, tmp_path: Path, harm: object) -> None:
    file = tmp_path / "m.ply"
    write_mesh_ply(file, mesh)
    file.write_bytes(harm(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(InputError, match="not a mesh of marigold3d, or damaged"):
        read_mesh_ply(file)
    with pytest.raises(InputError, match="no readable mesh"):
        read_mesh_ply(tmp_path / "none.ply")


@pytest.fixture
def run(clip: synthetic.Clip, tmp_path: Path) -> Run:
    """A finished run whose clip shows what its depth maps do."""
    video = clip.write(tmp_path / "clip.mp4")
    made = make_run(tmp_path / "run", str(video))
    for folder in ("depth", "sigma"):
        shutil.rmtree(made.path / folder)
    encoding = DepthEncoding.for_range(0.2, 8, "m")
    write_encoding(made.path / "depth" / "encoding.json", encoding)
    for i, depth in enumerate(synthetic.depth_maps(clip)):
        write_depth_png(made.path / "depth" / f"{i:06d}.png", depth, encoding)
    write_tum(made.path / "trajectory.txt", Trajectory(clip.timestamps_s, clip.T_world_camera), "m")
    (made.path / "camera.json").write_text(json.dumps(clip.camera.as_dict()))
    made.update(views=list(range(6)), settings={"fusion": {"voxel": VOXEL}})
    return Run.open(made.path)


def command(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["marigold3d", *map(str, args)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_finished_run_gets_its_mesh(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud = (run.path / "cloud.ply").read_bytes()
    assert command(monkeypatch, "fuse", run.path, "--mesh", "--triangles", 3000, "-q") == 0
    made = Run.open(run.path).mesh()
    assert 1000 < len(made) <= 3000
    assert np.median(synthetic.distance_to_surface(made.vertices.astype(float))) < 0.2 * VOXEL
    assert (run.path / "cloud.ply").read_bytes() == cloud, "a mesh alone leaves the cloud as it is"
    capsys.readouterr()
    assert command(monkeypatch, "info", run.path) == 0
    assert f"mesh      {len(made):,} triangles" in capsys.readouterr().out
    assert command(monkeypatch, "fuse", run.path, "--voxel", 0.05, "-q") == 0
    assert "mesh.ply was of the former cloud" in capsys.readouterr().err
    again = Run.open(run.path)
    assert not again.has_mesh
    assert "mesh" not in again.manifest["report"]
    with pytest.raises(InputError, match="--mesh"):
        again.mesh()


def test_a_clip_becomes_a_mesh_or_says_how(
    clip: synthetic.Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command; then the same with a disk that is full when the mesh comes: the scene stays."""
    video = clip.write(tmp_path / "clip.mp4")
    monkeypatch.setattr("marigold3d.pipeline.load_estimator", lambda _: synthetic.Oracle(clip))
    np.save(tmp_path / "poses.npy", clip.T_world_camera)
    options = ["--poses", tmp_path / "poses.npy", "--metric-poses", "--focal-px", clip.camera.fx, "--no-refine", "-q"]
    assert command(monkeypatch, "video", video, "-o", tmp_path / "run", *options, "--mesh", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mesh"]["triangles"] == len(Run.open(tmp_path / "run").mesh()) > 1000

    def full(*_: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("marigold3d.meshing.write_mesh_ply", full)
    assert command(monkeypatch, "video", video, "-o", tmp_path / "other", *options, "--mesh") == 7
    assert "fuse" in capsys.readouterr().err
    assert Run.open(tmp_path / "other").finished
    assert not Run.open(tmp_path / "other").has_mesh


def test_refusals(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, "fuse", run.path, "--triangles", 100) == 2
    assert command(monkeypatch, "video", "clip.mp4", "--mesh", "--no-fuse") == 2
    assert command(monkeypatch, "video", "clip.mp4", "--triangles", 100) == 2
    Path(run.manifest["clip"]).unlink()
    assert command(monkeypatch, "fuse", run.path, "--mesh", "-q") == 3
    assert not run.has_mesh


def test_an_interrupted_mesh_leaves_the_old_one(run: Run) -> None:
    drive(mesh_run(run))
    before = (run.path / "mesh.ply").read_bytes()
    steps = mesh_run(run)
    next(steps)
    steps.close()
    assert (run.path / "mesh.ply").read_bytes() == before
    assert not (run.cache / "tsdf").exists()
    drive(refuse(run))
    assert not run.has_mesh
