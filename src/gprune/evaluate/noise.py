"""Models of random weights and prompts with an image of noise: speed does not depend on what is in either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from .. import host
from ..families.tiling import tiling
from ..prompt import build_inputs

Size = tuple[int, int]
"""(height, width) of an image in pixels."""

Shown = tuple[list[int], dict[str, Tensor]]
"""An image in a prompt: its token ids, placeholders and tags, and the arguments of forward for it, [rows, ...]."""

TEXT, TAG, OVERVIEW = 10, 11, 12
"""Token ids of text, of what announces a tile, and of what announces the whole image; a model takes any."""

MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 16384 * 28 * 28
"""Between which Qwen2.5-VL's processor scales an image."""

TILES_ALONG = 4
"""SmolVLM's processor scales the longer edge of every image to that many tiles."""


def random_model(config: PreTrainedConfig, dtype: torch.dtype, device: str | torch.device) -> Any:
    """The model of a config, for inference, with weights drawn where they are to stay, as transformers draws them."""
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()


def build_prompts(config: PreTrainedConfig, image_size: Size, text_tokens: int, count: int = 1) -> dict[str, Tensor]:
    """Equal prompts of text, an image of noise, and text, as the processor of the family would make them.

    Args:
        config: of a family that is known without a processor.
        image_size: (height, width) in pixels.
        text_tokens: all tokens that are no placeholders, the tags of tiles included.
        count: of prompts.

    Returns:
        The arguments of `generate()`; pixels in float32.

    Raises:
        ValueError: the family is unknown, or `text_tokens` are too few for the image's tags and one token after it.
    """
    model_type = config.model_type
    if model_type not in _SHOWN:
        raise ValueError(f"no prompts without a processor for model_type {model_type!r}; known are {', '.join(_SHOWN)}")
    shown, arguments = _SHOWN[model_type](config, image_size)
    placeholder = host.placeholder(config)
    least = sum(token != placeholder for token in shown) + 1
    _check_text(text_tokens, least, model_type, image_size)
    before, after = (text_tokens - least) // 2, (text_tokens - least + 1) // 2 + 1
    ids = torch.tensor([[TEXT] * before + shown + [TEXT] * after])
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **arguments}
    if model_type == "qwen2_5_vl":
        prompt["mm_token_type_ids"] = (ids == placeholder).long()
    return {name: torch.cat([tensor] * count) for name, tensor in prompt.items()}


def process_prompts(
    model: Any, processor: Any, image_size: Size, text_tokens: int, count: int = 1
) -> dict[str, Tensor]:
    """The same for a model with a processor; the prompts are filled up with its last token.

    Args:
        model: of any family.
        processor: its own.
        image_size, text_tokens, count: see `build_prompts`.

    Returns:
        On the model's device and in its dtype.

    Raises:
        ValueError: the processor's prompt alone has more than `text_tokens`.
    """
    height, width = image_size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    prompt = build_inputs(model, processor, [([Image.fromarray(noise)], "?")] * count)
    ids = prompt["input_ids"]
    given = ids.shape[1] - int((ids[0] == host.placeholder(model.config)).sum())
    _check_text(text_tokens, given, model.config.model_type, image_size)
    missing = text_tokens - given

    def filled(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor[:, -1:].expand(-1, missing)], dim=1) if tensor.shape == ids.shape else tensor

    return {name: filled(tensor) for name, tensor in prompt.items()}


def _check_text(text_tokens: int, least: int, model_type: str, size: Size) -> None:
    if text_tokens < least:
        raise ValueError(
            f"text_tokens={text_tokens} is too few: a prompt of {model_type} with an image of {size[1]}x{size[0]} has "
            f"at least {least} tokens beside the visual ones; pass that or more"
        )


def _llava(config: Any, size: Size) -> Shown:
    side = config.vision_config.image_size
    return _placeholders(config, (side // config.vision_config.patch_size) ** 2), {
        "pixel_values": _noise(1, 3, side, side)
    }


def _llava_next(config: Any, size: Size) -> Shown:
    tiles, side = tiling(config, size), config.vision_config.image_size
    pixels = {"pixel_values": _noise(1, tiles.tiles, 3, side, side), "image_sizes": torch.tensor([size])}
    return _placeholders(config, sum(tiles.views) + tiles.newlines), pixels


def _qwen25_vl(config: Any, size: Size) -> Shown:
    vision = config.vision_config
    merged = vision.patch_size * vision.spatial_merge_size
    rows, columns = (n // vision.patch_size for n in host.smart_size(size, merged, MIN_PIXELS, MAX_PIXELS))
    tokens = _placeholders(config, rows * columns // vision.spatial_merge_size**2)
    pixels = _noise(rows * columns, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
    grid = torch.tensor([[1, rows, columns]])
    ids = [config.vision_start_token_id, *tokens, config.vision_end_token_id]
    return ids, {"pixel_values": pixels, "image_grid_thw": grid}


def _idefics3(config: Any, size: Size) -> Shown:
    """Every tile with a tag for its place before it, every row of tiles ends a line, the whole image comes last."""
    vision = config.vision_config
    edge = vision.image_size
    processor = host.image_processor("Idefics3")(
        size={"longest_edge": TILES_ALONG * edge}, max_image_size={"longest_edge": edge}
    )
    tiles, rows, columns = processor.get_number_of_image_patches(*size)
    tokens = _placeholders(config, (edge // vision.patch_size // config.scale_factor) ** 2)
    row = [TEXT, TAG, *tokens] * columns + [TEXT]
    pixels = _noise(1, tiles, 3, edge, edge)
    mask = torch.ones(1, tiles, edge, edge, dtype=torch.long)
    ids = [*row * rows, TEXT, TEXT, OVERVIEW, *tokens, TEXT]
    return ids, {"pixel_values": pixels, "pixel_attention_mask": mask}


def _placeholders(config: Any, count: int) -> list[int]:
    return [host.placeholder(config)] * count


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


_SHOWN: dict[str, Callable[[Any, Size], Shown]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_5_vl": _qwen25_vl,
    "idefics3": _idefics3,
}
"""How an image is shown to a model, by model_type."""
