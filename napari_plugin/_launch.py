"""napari as an application: `marigold3d gui [CLIP|RUN]`."""

from __future__ import annotations

from pathlib import Path

from marigold3d.doctor import check_display, check_qt
from marigold3d.errors import UsageError


def open_napari(path: str | None) -> None:
    """See `launch`. Qt is tried in another process first: a missing library would abort this one without a word."""
    for check in (check_display(), check_qt()):
        if not check.ok:
            raise UsageError(f"napari cannot open a window ({check.detail}): {check.remedy}")
    import napari

    from ._panel import ReconstructionPanel

    viewer = napari.Viewer(title="marigold3d")
    panel = ReconstructionPanel(viewer)
    viewer.window.add_dock_widget(panel, name="Reconstruct video", area="right")
    if path is not None:
        panel.load(Path(path))
    napari.run()
