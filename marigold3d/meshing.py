"""A finished run gets a mesh, RUN/mesh.ply, of the same depth maps, settings and masks as its cloud."""

from __future__ import annotations

from threadpoolctl import threadpool_limits

from .edits import edits, fusion_settings
from .exclusions import read_exclusions
from .export.mesh_ply import write_mesh_ply
from .finished import require_scene, scene_colors, scene_views
from .fusion.mesh import fuse_mesh
from .progress import Steps
from .store import Run


def mesh_run(run: Run, triangles: int | None = None) -> Steps[Run]:
    """Write the run's mesh, of about so many triangles at the most; an older one stays until the new one is whole.

    Raises InputError when the run is not finished, has no camera path, or its clip is gone; GeometryError when there is
    no surface.
    """
    require_scene(run)
    views = scene_views(run, read_exclusions(run, edits(run)))
    colors = scene_colors(run, views.indices)
    with threadpool_limits(1, "blas"):
        mesh, report = yield from fuse_mesh(views, colors, fusion_settings(run), run.cache / "tsdf", triangles)
    write_mesh_ply(run.path / "mesh.ply", mesh)
    run.update(report={**run.manifest.get("report", {}), "mesh": report.as_dict()})
    return run
