"""A sensor's depths carried to other frames are the depths these frames see."""

from __future__ import annotations

import numpy as np

from marigold3d.align.carried import REACH, carried_around
from marigold3d.types import SparseCues
from tests import synthetic


def test_neighbours_see_what_one_frame_measured(rng: np.random.Generator) -> None:
    camera, poses = synthetic.camera(), synthetic.walk(30)
    uv = rng.uniform((0, 0), (camera.width, camera.height), (200, 2))
    uv = np.floor(uv) + 0.5
    z = synthetic.depth_of(camera, poses[10])[uv[:, 1].astype(int), uv[:, 0].astype(int)].astype(float)
    around = carried_around({10: SparseCues(uv, z, 0.01 * z)}, poses, camera)
    assert sorted(around) == [i for i in range(30) if i != 10 and abs(i - 10) <= REACH]
    for frame, cues in around.items():
        seen = synthetic.depth_of(camera, poses[frame])
        there = seen[cues.uv[:, 1].astype(int), cues.uv[:, 0].astype(int)]
        assert np.median(np.abs(cues.depth / there - 1)) < 0.01
        assert (cues.depth < 0.95 * there).mean() < 0.05, "what is hidden lies behind, nothing floats before it"
        assert cues.sigma is not None
        assert np.all(cues.sigma > 0.02 * cues.depth)


def test_without_cues_nothing_is_carried() -> None:
    assert carried_around({}, synthetic.walk(3), synthetic.camera()) == {}
