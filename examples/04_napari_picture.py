"""The panels of the napari plugin with a run's scene, as a picture: a window, or Xvfb in place of one.

    xvfb-run -a -s "-screen 0 1600x1000x24" python examples/04_napari_picture.py RUN -o napari.png

Without RUN it is the finished example run that comes with the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from marigold3d.errors import Marigold3DError

SAMPLE = Path(__file__).with_name("clip_sample_3d")
SIZE = (1600, 1000)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=SAMPLE, help="run folder")
    parser.add_argument("-o", "--output", type=Path, default=Path("napari.png"), help="picture to write")
    parser.add_argument("--frame", type=int, help="source frame whose camera is drawn; default: the one in the middle")
    parser.add_argument(
        "--measure",
        type=float,
        nargs=4,
        metavar=("X1", "Y1", "X2", "Y2"),
        help="pixels of that frame to measure between",
    )
    options = parser.parse_args(arguments)
    try:
        draw(options.run, options.output, options.frame, options.measure)
    except Marigold3DError as error:
        print(f"error: {error}")
        return error.exit_code
    print(options.output)
    return 0


def draw(run: Path, output: Path, frame: int | None, ends: list[float] | None) -> None:
    """Open the run with both panels, look at a frame, measure if wanted, and write what the window shows."""
    import napari
    from marigold3d.napari_plugin import dock_panels
    from PIL import Image

    viewer = napari.Viewer(show=False)
    reconstruct, explore = dock_panels(viewer)
    viewer.show()
    viewer.window.resize(*SIZE)
    reconstruct.load(run)
    frames = explore.scene.frames
    explore.frame.value = frames[len(frames) // 2] if frame is None else frame
    if ends is not None:
        explore.view.value, explore.measuring.click.value = "frames", "measures"
        for x, y in (ends[:2], ends[2:]):
            explore.measuring.clicked((explore.scene.nearest_frame(explore.frame.value), y - 0.5, x - 0.5))
        explore.view.value = "scene"
    napari.utils.notifications.notification_manager.records.clear()
    picture = viewer.screenshot(canvas_only=False, flash=False)
    Image.fromarray(picture).convert("RGB").save(output)
    viewer.close()


if __name__ == "__main__":
    raise SystemExit(main())
