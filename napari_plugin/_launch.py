"""napari as an application: `marigold3d gui [CLIP|RUN]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from marigold3d.doctor import check_display, check_qt
from marigold3d.errors import UsageError

if TYPE_CHECKING:
    import napari.viewer

    from ._explore import ExplorePanel
    from ._panel import ReconstructionPanel

RECONSTRUCT, EXPLORE = "Reconstruct video", "Explore scene"  # as in the manifest


def open_napari(path: str | None) -> None:
    """See `launch`. Qt is tried in another process first: a missing library would abort this one without a word."""
    for check in (check_display(), check_qt()):
        if not check.ok:
            raise UsageError(f"napari cannot open a window ({check.detail}): {check.remedy}")
    import napari

    from ._panel import reader_of

    if path is not None:
        reader_of(Path(path))  # before a window opens for nothing
    viewer = napari.Viewer(title="marigold3d")
    panel, _ = dock_panels(viewer)
    if path is not None:
        panel.load(Path(path))
    napari.run()


def dock_panels(viewer: napari.viewer.Viewer) -> tuple[ReconstructionPanel, ExplorePanel]:
    """Both panels, as two tabs; a finished run brings the second to the front."""
    from ._explore import ExplorePanel
    from ._panel import ReconstructionPanel

    panel, explorer = ReconstructionPanel(viewer), ExplorePanel(viewer)
    front = viewer.window.add_dock_widget(panel, name=RECONSTRUCT, area="right")
    dock_explorer(viewer, explorer)
    front.raise_()
    return panel, explorer


def dock_explorer(viewer: napari.viewer.Viewer, explorer: ExplorePanel) -> None:
    """A tab that comes to the front whenever it has another run to show."""
    dock = viewer.window.add_dock_widget(explorer, name=EXPLORE, area="right", tabify=True)
    explorer.opened.connect(dock.raise_, check_nargs=False)


def show_explorer(viewer: napari.viewer.Viewer) -> None:
    """Have the panel "Explore scene" in the viewer, beside whatever is docked there."""
    from ._explore import ExplorePanel

    if ExplorePanel.of(viewer) is None:
        try:
            dock, explorer = viewer.window.add_plugin_dock_widget("marigold3d", EXPLORE, tabify=True)
            explorer.opened.connect(dock.raise_, check_nargs=False)
        except (ValueError, KeyError):  # run from a checkout that is not registered
            dock_explorer(viewer, ExplorePanel(viewer))
