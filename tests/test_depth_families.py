"""Every family of depth networks gives what transformers' own code gives, and each number's meaning is known."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from marigold3d.depth import transformers as estimators
from marigold3d.depth.network_types import DOMAINS, REFUSED, network_domain
from marigold3d.depth.preprocessing import FixedSize
from marigold3d.depth.transformers import TransformersEstimator, inverse_depth
from marigold3d.errors import InputError, ModelError, UsageError
from tests.depth_networks import FAMILIES, write_network

Frames = NDArray[np.uint8]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`network(family)`: folder of a random one, written once."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = write_network(tmp_path_factory.mktemp(family), family)
        return made[family]

    return folder


@pytest.fixture
def frames(rng: np.random.Generator) -> Frames:
    """(2, 60, 84, 3)."""
    return rng.integers(0, 256, (2, 60, 84, 3), dtype=np.uint8)


def post_process(kind: str) -> Callable[..., list[dict[str, Any]]]:
    """`post_process_depth_estimation` of transformers' preprocessor for a model type, taken from its source file: the
    modules of some want torchvision, of which these functions use one resizing call.
    """
    file = f"image_processing_{kind if kind == 'depth_pro' else 'pil_' + kind}.py"
    package = importlib.util.find_spec(f"transformers.models.{kind}")
    assert package is not None
    assert package.submodule_search_locations is not None
    tree = ast.parse((Path(package.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "post_process_depth_estimation"]
    found[0].decorator_list, found[0].returns = [], None
    for argument in found[0].args.args:
        argument.annotation = None

    def resize(image: torch.Tensor, size: list[int], interpolation: str, antialias: bool) -> torch.Tensor:
        return F.interpolate(image[None], size, mode=interpolation, antialias=antialias)[0]

    names: dict[str, Any] = {
        "torch": torch,
        "np": np,
        "tvF": SimpleNamespace(resize=resize, InterpolationMode=SimpleNamespace(BICUBIC="bicubic")),
        "pil_torch_interpolation_mapping": {2: SimpleNamespace(value="bilinear")},
    }
    exec(compile(ast.Module([found[0]], []), file, "exec"), names)
    return names["post_process_depth_estimation"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_transformers(
    family: str, network: Callable[[str], Path], frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network, preprocessor and post-processing of transformers, which enlarges by bicubic interpolation mostly."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    folder, kind = network(family), json.loads((network(family) / "config.json").read_text())["model_type"]
    ours = TransformersEstimator(folder, device="cpu")
    if kind == "depth_pro":  # its preprocessor wants torchvision: its arithmetic by hand
        settings: Any = SimpleNamespace(resample=2)
        standard = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.5
        pixels = F.interpolate(standard, (32, 32), mode="bilinear")
    else:
        monkeypatch.setattr(estimators, "ENLARGED", "bicubic")
        settings = AutoImageProcessor.from_pretrained(folder, backend="pil")
        pixels = settings(images=list(frames), return_tensors="pt").pixel_values
    with torch.no_grad():
        outputs = AutoModelForDepthEstimation.from_pretrained(folder)(pixel_values=pixels)
    sizes: dict[str, Any] = {"target_sizes": [frames.shape[1:3]] * len(frames)}
    if kind == "zoedepth":
        sizes["source_sizes"] = sizes["target_sizes"]
    owner = {"depth_anything": "dpt"}.get(kind, kind)
    theirs = [found["predicted_depth"].numpy() for found in post_process(owner)(settings, outputs, **sizes)]
    found = [depth.values for depth in ours.estimate(frames)]
    assert np.std(found) > 1e-3
    np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frame_does_not_depend_on_its_batch(family: str, network: Callable[[str], Path], frames: Frames) -> None:
    estimator = TransformersEstimator(network(family), device="cpu")
    together = estimator.estimate(frames)
    for frame, depth in zip(frames, together, strict=True):
        np.testing.assert_allclose(estimator.estimate(frame[None])[0].values, depth.values, rtol=1e-4, atol=1e-5)


def test_depth_pro_is_metric_by_its_field_of_view() -> None:
    """90 degrees across: the focal length is half the width, so that C = 1 means z = f / w = half a metre."""
    canonical = torch.tensor([[[1.0, 0.25]], [[1.0, 0.25]]])
    narrow = np.degrees(2 * np.arctan(0.25))  # a focal length of twice the width
    inverse = inverse_depth(canonical, torch.tensor([90.0, narrow]))
    np.testing.assert_allclose(1 / inverse.numpy(), [[[0.5, 2.0]], [[2.0, 8.0]]], rtol=1e-5)


def test_depth_pro_before_its_field_of_view(network: Callable[[str], Path], frames: Frames, tmp_path: Path) -> None:
    metric = TransformersEstimator(network("depth_pro"), device="cpu")
    disparity = TransformersEstimator(network("depth_pro"), domain="disparity", device="cpu")
    assert (metric.domain, disparity.domain) == ("metric", "disparity")
    product = metric.estimate(frames)[0].values * disparity.estimate(frames)[0].values  # f / w, the same everywhere
    assert product.std() / product.mean() < 1e-5
    with pytest.raises(UsageError, match="not log_depth"):
        TransformersEstimator(network("depth_pro"), domain="log_depth", device="cpu")
    blind = TransformersEstimator(write_network(tmp_path, "depth_pro", use_fov_model=False), device="cpu")
    assert (blind.domain, blind.estimate(frames)[0].domain) == ("disparity", "disparity")


def test_every_type_of_transformers_has_a_verdict() -> None:
    """A new release may bring new types: somebody has to read what their numbers mean."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES as KNOWN

    assert set(KNOWN) <= set(DOMAINS) | set(REFUSED)
    assert not set(DOMAINS) & set(REFUSED)


def config_folder(tmp_path: Path, **config: object) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "domain"),
    [
        ({"model_type": "depth_anything"}, "disparity"),
        ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, "metric"),
        ({"model_type": "dpt"}, "disparity"),
        ({"model_type": "dpt", "backbone_config": {"model_type": "beit"}}, "disparity"),
        ({"model_type": "glpn"}, "metric"),
        ({"model_type": "zoedepth"}, "metric"),
        ({"model_type": "tipsv2_dpt"}, "metric"),
        ({"model_type": "depth_pro", "use_fov_model": True}, "metric"),
        ({"model_type": "depth_pro"}, "disparity"),
    ],
)
def test_domains(config: dict[str, object], domain: str, tmp_path: Path) -> None:
    assert network_domain(config_folder(tmp_path, **config)) == domain


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "chmv2"}, "height of trees"),
        ({"model_type": "prompt_depth_anything"}, "needs measured depth with every frame.*--cues"),
        ({"model_type": "vit"}, "no depth network that transformers can load: use depth_anything"),
        ({"model_name": "da3-large"}, "type 'None', no depth network"),
        ({"model_type": "dpt", "backbone_config": {"model_type": "dinov2"}}, "say which with --domain"),
    ],
)
def test_refused_types(config: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        network_domain(config_folder(tmp_path, **config))


def test_the_caller_knows_an_ambiguous_network(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, model_type="dpt", backbone_config={"model_type": "dinov2"})
    assert network_domain(folder, "metric") == "metric"


def test_a_fixed_size_and_its_normalisation() -> None:
    tips = FixedSize.of("tipsv2_dpt", {"size": {"height": 4, "width": 6}})
    np.testing.assert_allclose(
        tips(np.full((2, 8, 12, 3), 51, np.uint8)).numpy(), np.full((2, 3, 4, 6), 0.2), rtol=1e-6
    )
    pro = FixedSize.of("depth_pro", {"size": {"height": 4, "width": 6}})
    np.testing.assert_allclose(pro(np.full((1, 8, 12, 3), 255, np.uint8)).numpy(), np.ones((1, 3, 4, 6)), rtol=1e-6)
    assert FixedSize.of("depth_pro", {}).size == (1536, 1536)


def test_which_networks_take_other_sizes(network: Callable[[str], Path], frames: Frames) -> None:
    smaller = TransformersEstimator(network("glpn"), processing_resolution=64, device="cpu")
    assert smaller.preprocessor(frames, 64).shape == (2, 3, 32, 64)  # 45 x 64, down to multiples of 32
    for family in ("dpt", "depth_pro"):
        with pytest.raises(UsageError, match="one size only"):
            TransformersEstimator(network(family), processing_resolution=64, device="cpu")


def test_frames_too_small_for_the_network(network: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="too narrow for depth"):
        TransformersEstimator(network("glpn"), device="cpu").estimate(np.zeros((1, 1, 1, 3), np.uint8))
    with pytest.raises(InputError, match="a 40x20 frame cannot be brought to the network's size"):
        TransformersEstimator(network("glpn"), device="cpu").estimate(np.zeros((1, 20, 40, 3), np.uint8))


def test_half_precision_that_overflows_falls_back(network: Callable[[str], Path], frames: Frames) -> None:
    plain = TransformersEstimator(network("dpt"), device="cpu").estimate(frames)
    half = TransformersEstimator(network("dpt"), dtype="bfloat16", device="cpu")
    scale = np.abs(plain[0].values).mean()
    assert np.abs(half.estimate(frames)[0].values - plain[0].values).max() < 0.05 * scale
    spoilt = TransformersEstimator(network("dpt"), dtype="float16", device="cpu")
    spoilt.model.head.register_forward_hook(lambda _, inputs, out: out * (1.0 if out.dtype == torch.float32 else 1e9))
    np.testing.assert_allclose(spoilt.estimate(frames)[0].values, plain[0].values, rtol=0.05)
    assert (spoilt.dtype, spoilt.provenance()["dtype"]) == (torch.float32, "float32")


def test_a_preprocessor_with_damaged_settings(network: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(network("depth_pro"), tmp_path / "damaged")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 384}))
    with pytest.raises(ModelError, match=r"preprocessor_config\.json cannot be loaded"):
        TransformersEstimator(folder, device="cpu")
