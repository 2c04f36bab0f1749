"""Small random depth networks of every family, as folders with weights and preprocessor settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

DPT_SETTINGS = {
    "image_processor_type": "DPTImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": False,
    "size": {"height": 56, "width": 56},
    "ensure_multiple_of": 14,
    "keep_aspect_ratio": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
SQUARE = DPT_SETTINGS | {"size": {"height": 32, "width": 32}, "keep_aspect_ratio": False, "ensure_multiple_of": 1}
DINOV2 = {
    "image_size": 56,
    "patch_size": 14,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "out_indices": [1, 2, 3, 4],
    "reshape_hidden_states": False,
}


def depth_anything(**settings: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(**DINOV2, apply_layernorm=True),
        patch_size=14,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[4, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=4,
        **settings,
    )
    return DepthAnythingForDepthEstimation(config), DPT_SETTINGS


def dpt(**settings: Any) -> tuple[Any, dict[str, Any]]:
    """MiDaS 3.0: a plain vision transformer."""
    from transformers import DPTConfig, DPTForDepthEstimation

    return DPTForDepthEstimation(DPTConfig(**_dpt() | settings)), SQUARE


def dpt_beit() -> tuple[Any, dict[str, Any]]:
    """MiDaS 3.1."""
    from transformers import BeitConfig

    backbone = BeitConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        use_relative_position_bias=True,
    )
    return dpt(backbone_config=backbone)


def dpt_hybrid() -> tuple[Any, dict[str, Any]]:
    """A transformer on a convolutional stem."""
    stem = {
        "global_padding": "same",
        "layer_type": "bottleneck",
        "depths": [1, 1, 1],
        "out_features": ["stage1", "stage2", "stage3"],
        "embedding_dynamic_padding": True,
        "hidden_sizes": [8, 8, 16, 16],
        "embedding_size": 8,
        "num_groups": 4,
        "model_type": "bit",
    }
    neck = {"neck_hidden_sizes": [8, 8, 16, 16], "neck_ignore_stages": [0, 1], "readout_type": "project"}
    return dpt(is_hybrid=True, backbone_config=stem, patch_size=16, backbone_featmap_shape=[1, 16, 2, 2], **neck)


def _dpt() -> dict[str, Any]:
    return {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [4, 8, 16, 16],
        "fusion_hidden_size": 8,
    }


def zoedepth() -> tuple[Any, dict[str, Any]]:
    from transformers import BeitConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation

    backbone = BeitConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[4, 8, 16, 16],
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=8,
        bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 1],
        bin_configurations=[{"name": "nyu", "n_bins": 8, "min_depth": 0.1, "max_depth": 10.0}],
    )
    settings = {
        "image_processor_type": "ZoeDepthImageProcessor",
        "do_pad": True,
        "size": {"height": 32, "width": 48},
        "ensure_multiple_of": 8,
        "keep_aspect_ratio": True,
    }
    return ZoeDepthForDepthEstimation(config), settings


def glpn() -> tuple[Any, dict[str, Any]]:
    from transformers import GLPNConfig, GLPNForDepthEstimation

    config = GLPNConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    )
    return GLPNForDepthEstimation(config), {"image_processor_type": "GLPNImageProcessor", "size_divisor": 32}


def depth_pro(**settings: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import DepthProConfig, DepthProForDepthEstimation

    vit = {"model_type": "dinov2", "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "patch_size": 4}
    vit |= {"image_size": 8, "mlp_ratio": 2}
    config = DepthProConfig(
        patch_size=8,
        patch_model_config=dict(vit),
        image_model_config=dict(vit),
        fov_model_config=dict(vit),
        fusion_hidden_size=8,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.2],
        scaled_images_feature_dims=[8, 8],
        use_batch_norm_in_fusion_residual=False,
        **{"use_fov_model": True, "num_fov_head_layers": 0} | settings,
    )
    preprocessor = {
        "image_processor_type": "DepthProImageProcessor",
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return DepthProForDepthEstimation(config), preprocessor


FAMILIES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "depth_anything": depth_anything,
    "dpt": dpt,
    "dpt_beit": dpt_beit,
    "dpt_hybrid": dpt_hybrid,
    "zoedepth": zoedepth,
    "glpn": glpn,
    "depth_pro": depth_pro,
}


def write_network(folder: Path, family: str, **settings: Any) -> Path:
    """A random network of `family` in `folder`, whose output varies over the picture and is positive."""
    torch.manual_seed(3)
    model, preprocessor = FAMILIES[family](**settings)
    for weights in model.parameters():  # the usual start is so small that the output would be constant
        if weights.ndim > 1:
            torch.nn.init.xavier_normal_(weights)
    for part, bias in (("head", 3.0), ("fov_model", 60.0)):  # most heads end in a ReLU; a field of view in degrees
        if (found := getattr(model, part, None)) is not None:
            [m for m in found.modules() if isinstance(m, torch.nn.Conv2d)][-1].bias.data.fill_(bias)  # type: ignore[union-attr]
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder
