"""The networks of a Marigold checkpoint in diffusers' folder format, loaded component by component.

    model_index.json   which classes, default steps and resolution, what is predicted
    unet/ vae/ text_encoder/   config.json and safetensors weights
    scheduler/ tokenizer/      JSON

Only the embedding of the empty prompt is needed of the text encoder, so encoder and tokenizer are released once they
have given it. `DiffusionPipeline.from_pretrained` would keep them, and its import takes twice as long.

A checkpoint trained end to end on zeros says so by `"_noise": "zeros"` in model_index.json; diffusers ignores names
that begin with an underscore. The published ones (arXiv 2409.11355) say it nowhere: the registry does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from ..errors import ModelError, UsageError
from ..types import Domain
from .checkpoint import quiet_transformers, read_json, weight_files, weight_variant
from .device import load_error, parameters_to
from .ensemble import Mode
from .tuning import reduction, tune

_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "scheduler": ("DDIMScheduler", "LCMScheduler"),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}

Noise = Literal["gaussian", "zeros"]

_DOMAINS: dict[str, Domain] = {"depth": "depth", "disparity": "disparity"}


@dataclass(frozen=True, eq=False)
class MarigoldModel:
    """Frozen networks: `unet` (2C -> C latent channels), `vae`, `scheduler`, `empty_prompt` (1, tokens, channels).

    `small_decoder`: an AutoencoderTiny that decodes depth in place of `vae`. `noise`: what the depth latent starts
    from. `mode`: what its predictions leave free, scale and shift ("affine"), the scale, or nothing ("none").
    """

    unet: Any
    vae: Any
    scheduler: Any
    empty_prompt: torch.Tensor
    domain: Domain
    default_steps: int
    default_resolution: int
    small_decoder: Any = None
    noise: Noise = "gaussian"
    mode: Mode = "affine"

    @property
    def decoder(self) -> Any:
        """The autoencoder that decodes depth."""
        return self.vae if self.small_decoder is None else self.small_decoder

    @property
    def reduction(self) -> int:
        """Image pixels a latent pixel, along each side."""
        return reduction(self.vae)

    @property
    def latent_channels(self) -> int:
        """Channels C of the latent."""
        return int(self.vae.config.latent_channels)


def load_marigold(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    timestep_spacing: str | None = None,
    *,
    domain: Domain | None = None,
    small_decoder: Path | None = None,
    compiled: bool = False,
) -> MarigoldModel:
    """The networks in `folder` on `device`, tuned; `timestep_spacing` overrides the checkpoint's own.

    domain: of checkpoints that do not say what they predict. small_decoder: folder of an AutoencoderTiny. Raises
    ModelError, in one line with its remedy, for a folder that is incomplete, damaged or no Marigold checkpoint.
    """
    index = read_json(folder / "model_index.json")
    domain = _domain(folder, index, domain)
    classes = {part: _class_name(folder, index, part) for part in _CLASSES}
    prompt = empty_prompt(folder).to(device, dtype)
    small = None if small_decoder is None else _small_decoder(small_decoder, device, dtype)
    model = MarigoldModel(
        parameters_to(load_network(folder / "unet", classes["unet"], dtype), device),
        parameters_to(load_network(folder / "vae", classes["vae"], dtype), device),
        _scheduler(folder, classes["scheduler"], timestep_spacing),
        prompt,
        domain,
        int(index.get("default_denoising_steps") or 10),
        int(index.get("default_processing_resolution") or 768),
        small,
        _noise(folder, index),
        _mode(index),
    )
    _check_channels(folder, model)
    tune(model.unet, model.vae, model.decoder, compiled)
    return model


def _domain(folder: Path, index: dict[str, Any], given: Domain | None) -> Domain:
    """What the checkpoint predicts; the first releases do not say, and predict depth."""
    predicted = index.get("prediction_type") or given or "depth"
    kind = index.get("_class_name")
    name = str(kind[-1] if isinstance(kind, list) and kind else kind)  # [module, class] where its own code comes along
    known = name.startswith("Marigold") or given is not None
    if not known or predicted not in _DOMAINS:
        raise ModelError(f"{folder} is a {name} that predicts {predicted!r}: use a Marigold depth checkpoint")
    if given is not None and given != _DOMAINS[predicted]:
        raise UsageError(f"{folder} says that it predicts {predicted}: leave --domain {given} out")
    return _DOMAINS[predicted]


def _noise(folder: Path, index: dict[str, Any]) -> Noise:
    noise = index.get("_noise", "gaussian")
    if noise not in get_args(Noise):
        raise ModelError(f"{folder / 'model_index.json'}: _noise is {noise!r}, but must be gaussian or zeros")
    return cast(Noise, noise)


def _mode(index: dict[str, Any]) -> Mode:
    if not index.get("scale_invariant", True):
        return "none"
    return "affine" if index.get("shift_invariant", True) else "scale"


def _class_name(folder: Path, index: dict[str, Any], part: str) -> str:
    entry = index.get(part)
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name not in _CLASSES[part]:
        raise ModelError(f"{folder}: {part} is {name}, but must be {' or '.join(_CLASSES[part])}")
    if not (folder / part).is_dir():
        raise ModelError(f"{folder} is not a complete checkpoint: its folder {part}/ is missing, get it again")
    return str(name)


def empty_prompt(folder: Path) -> torch.Tensor:
    """(1, tokens, channels) float32: what the U-Net attends to in place of a text. The text encoder is released again.

    Raises ModelError where tokenizer or weights are missing or damaged.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    weights = folder / "text_encoder"
    variant = weight_variant(weights)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        # In float32 on the CPU: one pass over two tokens, and the same embedding for every device.
        with quiet_transformers():
            encoder = CLIPTextModel.from_pretrained(weights, use_safetensors=True, variant=variant, dtype=torch.float32)
        ids = tokenizer("", padding="do_not_pad", truncation=True, return_tensors="pt").input_ids  # (1, tokens)
        with torch.no_grad():
            return encoder(ids)[0]  # type: ignore[no-any-return]
    except Exception as error:
        raise load_error(weights, error) from error


def _small_decoder(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != "AutoencoderTiny":
        raise ModelError(f"{folder} is a {kind}: --tiny-vae takes an AutoencoderTiny, such as madebyollin/taesd")
    return parameters_to(load_network(folder, kind, dtype), device)


def load_network(weights: Path, class_name: str, dtype: torch.dtype) -> Any:
    """A network of diffusers from the folder `weights`, on the CPU. Raises ModelError unless it is whole."""
    import diffusers
    from diffusers.utils.import_utils import is_accelerate_available

    variant = weight_variant(weights)
    try:
        network, report = getattr(diffusers, class_name).from_pretrained(
            weights,
            use_safetensors=True,
            variant=variant,
            torch_dtype=dtype,
            # accelerate saves one copy of the weights; without it, asking for that would only print a warning.
            low_cpu_mem_usage=is_accelerate_available(),
            output_loading_info=True,
        )
    except Exception as error:
        raise load_error(weights, error) from error
    if report["missing_keys"]:  # diffusers would leave them at random values
        raise ModelError(f"{weights} lacks weights ({report['missing_keys'][0]}, …): get the checkpoint again")
    return network


def _scheduler(folder: Path, class_name: str, timestep_spacing: str | None) -> Any:
    import diffusers

    read_json(folder / "scheduler" / "scheduler_config.json")
    override = {} if timestep_spacing is None else {"timestep_spacing": timestep_spacing}
    try:
        return getattr(diffusers, class_name).from_pretrained(folder / "scheduler", **override)
    except Exception as error:
        raise load_error(folder / "scheduler", error) from error


def _check_channels(folder: Path, model: MarigoldModel) -> None:
    found, needed = model.unet.config.in_channels, 2 * model.latent_channels
    if found != needed:
        raise ModelError(
            f"{folder}: the U-Net takes {found} channels, not the {needed} of image and depth latent: "
            "use a Marigold depth checkpoint, not the image generator it started from"
        )
    decodes = (model.decoder.config.latent_channels, reduction(model.decoder))
    if decodes != (model.latent_channels, model.reduction):
        raise ModelError(
            f"the small decoder takes {decodes[0]} channels at 1/{decodes[1]} of the size, {folder} makes "
            f"{model.latent_channels} at 1/{model.reduction}: choose another --tiny-vae"
        )


def weight_paths(folder: Path, small_decoder: Path | None = None) -> list[Path]:
    """The files that determine the prediction."""
    own = [folder / "model_index.json", *weight_files(folder / "unet"), *weight_files(folder / "vae")]
    return own if small_decoder is None else [*own, *weight_files(small_decoder)]
