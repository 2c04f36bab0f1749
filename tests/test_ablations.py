"""The command that compares variants of the embedded network's training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.evaluation_sets import write_frames
from training import ablations, compact, pool
from training.data.samples import Sample

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("domain", ["log_depth", "depth", "disparity"])
def test_what_a_domain_leaves_open_is_fitted_exactly(
    domain: ablations.losses.DepthDomain,
) -> None:
    depth_m = 1.0 + 5.0 * torch.rand(1, 12, 16, generator=torch.Generator().manual_seed(0))
    sample = Sample(torch.zeros(3, 12, 16, dtype=torch.uint8), depth_m, depth_m < 4.0, "x")
    z = depth_m[0].numpy().astype(float)
    values = {"log_depth": np.log(z) + 2.0, "depth": 0.1 * z - 3.0, "disparity": 7.0 / z + 1.0}[domain]
    np.testing.assert_allclose(ablations.fitted_m(values, sample, domain), z, rtol=1e-5)


@pytest.mark.slow
def test_the_command_prints_a_row_a_variant_and_trains_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (0, compact.HELD_OUT_SHARD):
        save_file(pool.render_shard(0, number, count=1), pool.shard_path(tmp_path, number))
    frames, out = write_frames(tmp_path / "frames"), tmp_path / "out"
    options = f"--pool {tmp_path} --plain {tmp_path} --shards 1 --data {frames} --out {out} --steps 1 --threads 1"
    monkeypatch.setattr("sys.argv", ["ablations", *options.split(), "--only", "no_gradient", "disparity"])
    ablations.main()
    first = capsys.readouterr().out.splitlines()[-4:]
    assert first[2].startswith("| no gradient loss | 0.")
    assert first[3].startswith("| predicts disparity up to scale and shift |  |")
    found = json.loads((out / "disparity.json").read_text())
    mean = np.mean([v["abs_rel"] for k, v in found["frames"].items() if k != "mean"])
    assert found["frames"]["mean"]["abs_rel"] == pytest.approx(mean)

    monkeypatch.setattr(compact.Training, "advance", lambda *_: pytest.fail("trained again"))
    ablations.main()
    assert capsys.readouterr().out.splitlines()[-4:] == first
