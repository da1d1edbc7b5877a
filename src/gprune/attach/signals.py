"""What the vision tower knows of each visual token: the attention it receives there, and its key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import avg_pool2d, pad
from transformers import PreTrainedModel

from .. import host
from ..errors import UnsupportedModel
from ..pruners import PRUNERS
from ..pruners.base import Need, Pruner
from ..tiling import tiling
from .layouts import Layout
from .towers import reading
from .views import unordered

FROM_TOWER: tuple[Need, ...] = ("attention", "keys")

Arguments = Mapping[str, Any]
"""Those of the encoder call that were given, by name."""

ToTokens = Callable[[Any, Tensor, Arguments, int], Tensor]
"""(base model, values of the patches [B, n, c], arguments, number N of visual tokens) -> [..., c], N in all."""


def patches(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """A token is a patch."""
    return values


def pooled(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """A token is the mean of a square of patches of a square tile."""
    return _squares(values, math.isqrt(values.shape[1]), values.shape[:2].numel() // count)


def pooled_by_size(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """The same of images of any shape, [1, n, c] one after the other or [B, n, c] padded."""
    if "spatial_shapes" in arguments:
        shapes = arguments["spatial_shapes"].tolist()
        images = [image[: math.prod(shape)] for image, shape in zip(values, shapes, strict=True)]
    else:
        shapes = (torch.as_tensor(arguments["image_sizes"]) // base.vision_tower.patch_size).tolist()
        images = list(values[0].split([math.prod(shape) for shape in shapes]))
    area = sum(map(len, images)) // count
    return torch.cat([_squares(image[None], rows, area)[0] for image, (rows, _) in zip(images, shapes, strict=True)])


def merged(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """A token is the mean of patches that follow each other."""
    return values[0].view(count, -1, values.shape[-1]).mean(1)


def merged_in_windows(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """The same of a tower that puts the patches of a window next to each other."""
    tower = base.visual
    merge = tower.spatial_merge_size
    window = tower.window_size // merge // tower.patch_size
    grids = arguments["image_grid_thw" if "image_grid_thw" in arguments else "video_grid_thw"].tolist()
    order = torch.empty(0, dtype=torch.long)
    for frames, rows, columns in ((frames, height // merge, width // merge) for frames, height, width in grids):
        place = torch.cartesian_prod(*map(torch.arange, (frames, rows, columns)))
        across = -(-columns // window)
        windows = (place[:, 0] * rows + place[:, 1] // window) * across + place[:, 2] // window
        order = torch.cat([order, windows.argsort(stable=True) + len(order)])
    return merged(base, values, arguments, count)[order.argsort().to(values.device)]


def packed(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """Tiles as LLaVA-NeXT and LLaVA-OneVision pack them; newline rows are NaN."""
    sizes = arguments["image_sizes"]
    together = arguments.get("batch_num_images")
    cut = [True] * len(sizes) if together is None else [n == 1 for n in together for _ in range(int(n))]
    number = [tiling(base.config, tuple(size)).tiles for size in sizes.tolist()]
    tiles = [tiles if own else 1 for tiles, own in zip(number, cut, strict=True)]
    newline = values.new_full(values.shape[-1:], torch.nan)
    if base.config.model_type == "llava_onevision":
        how = {"vision_aspect_ratio": arguments.get("vision_aspect_ratio") or base.config.vision_aspect_ratio}
    else:
        how = {host.STRATEGY: _strategy(base, arguments)}
    return torch.cat(base.pack_image_features(values.split(tiles), sizes, image_newline=newline, **how)[0])


def resized_frames(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """Frames as LLaVA-OneVision resizes them, with a newline row, NaN, after each video."""
    frames = base.apply_pooling(values)
    videos = count - frames.shape[:2].numel()
    return pad(frames.reshape(videos, -1, frames.shape[-1]), (0, 0, 0, 1), value=torch.nan)


def without_class_token(tokens: ToTokens) -> ToTokens:
    """The same of patches behind a class token, where the encoder leaves it out."""

    def made(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
        return tokens(base, values[:, 1:] if _strategy(base, arguments) == "default" else values, arguments, count)

    return made


@dataclass(frozen=True)
class Source:
    """Where a family keeps its vision tower, and how it makes visual tokens of patches.

    Args:
        tower: name of the tower in the base model.
        image: of the image encoder.
        video: of the video encoder; None: not known.
    """

    tower: str
    image: ToTokens
    video: ToTokens | None = None


QWEN = Source("visual", merged, merged)

SOURCES: dict[str, Source] = {
    "aya_vision": Source("vision_tower", without_class_token(pooled)),
    "cohere2_vision": Source("vision_tower", pooled),
    "deepseek_vl": Source("vision_model", patches),
    "gemma3": Source("vision_tower", pooled),
    "glm46v": QWEN,
    "glm4v": QWEN,
    "idefics3": Source("vision_model", pooled),
    "internvl": Source("vision_tower", without_class_token(pooled)),
    "lfm2_vl": Source("vision_tower", pooled_by_size),
    "llava": Source("vision_tower", without_class_token(patches)),
    "llava_next": Source("vision_tower", without_class_token(packed)),
    "llava_next_video": Source("vision_tower", without_class_token(packed), without_class_token(pooled)),
    "llava_onevision": Source("vision_tower", without_class_token(packed), without_class_token(resized_frames)),
    "mistral3": Source("vision_tower", pooled_by_size),
    "paligemma": Source("vision_tower", patches),
    "qwen2_5_vl": Source("visual", merged_in_windows, merged_in_windows),
    "qwen2_vl": QWEN,
    "qwen3_5": QWEN,
    "qwen3_vl": QWEN,
    "qwen3_vl_moe": QWEN,
    "smolvlm": Source("vision_model", pooled),
    "vipllava": Source("vision_tower", without_class_token(patches)),
}
"""By model_type."""


def check_needs(pruner: Pruner, model: PreTrainedModel, layout: Layout) -> None:
    """Raise UnsupportedModel if the method needs what cannot be known of the visual tokens of this model."""
    if "place" in pruner.needs and (layout.joins is not None or layout.views is unordered):
        raise UnsupportedModel(
            f"{type(pruner).__name__} must know where in the picture a token lies, which gprune does not for "
            f"{model.config.model_type}: its views do not show the whole picture; use a family whose views do, such as "
            f"llava, llava_next or qwen2_vl"
        )
    missing = [need for need in FROM_TOWER if need in pruner.needs]
    if missing and reader(pruner, model, "image") == (None, None):
        needed = "attention" if "attention" in missing else "keys"
        raise UnsupportedModel(
            f"{type(pruner).__name__} needs the {needed} of the vision tower, which gprune cannot read for "
            f"{model.config.model_type}; it can for {', '.join(SOURCES)}; use one of those, or a method that needs "
            f"only features: {', '.join(name for name, method in PRUNERS.items() if not method.needs)}"
        )


def reader(pruner: Pruner, model: PreTrainedModel, modality: str) -> tuple[Module | None, ToTokens | None]:
    """The tower, and how values of its patches become those of visual tokens, where the method needs to know."""
    source = SOURCES.get(model.config.model_type)
    if source is None or not set(FROM_TOWER) & set(pruner.needs):
        return None, None
    tower: Module = getattr(model.base_model, source.tower)
    tokens = source.video if modality == "video" else source.image
    return (tower, tokens) if tokens is not None and host.attention_layers(tower) else (None, None)


def encode_and_read(
    encode: Callable[[], Any], base: Any, tower: Module, tokens: ToTokens, arguments: Arguments
) -> tuple[Any, dict[str, list[Tensor]]]:
    """Call an encoder, and read one layer of its tower on the way: the one whose output becomes the features.

    Where several layers do, the last of them; in towers with windows, the last layer without.

    Args:
        encode: makes the call.
        base: whose encoder it is.
        tower: of `base`.
        tokens: takes values from patches to visual tokens.
        arguments: of the call.

    Returns:
        What the encoder returns, and for each of its items "attention" float32 [n] and "keys" float32 [n, dk].
    """
    layer = host.attention_layers(tower)[_layer_index(base, tower, arguments)]
    with reading(layer, host.has_class_token(tower)) as readings:
        output = encode()
    features = getattr(output, host.POOLED, None)
    if features is None:
        return output, {}
    sizes = [len(item) for item in features]
    values = torch.cat([torch.cat([each.attention[..., None], each.keys], dim=-1) for each in readings])
    flat = tokens(base, values, arguments, sum(sizes)).reshape(-1, values.shape[-1])
    return output, {"attention": list(flat[:, 0].split(sizes)), "keys": list(flat[:, 1:].split(sizes))}


def _layer_index(base: Any, tower: Module, arguments: Arguments) -> int:
    """Of the attention layer, -1 for the last."""
    if whole := host.whole_layers(tower):
        return max(whole)
    chosen = host.feature_layers(base.config, arguments)
    layers = [chosen] if isinstance(chosen, int) else chosen
    count = len(host.attention_layers(tower))
    # Hidden state 0 is what the first layer is given.
    index = max(layer + count + 1 if layer < 0 else layer for layer in layers) - 1
    if index < 0:
        raise ValueError(
            f"vision_feature_layer={chosen} takes features from before the first layer of the vision tower, where no "
            f"attention has been paid; pass the index of a layer, or use a method that needs only features"
        )
    return index


def _strategy(base: Any, arguments: Arguments) -> str:
    return host.feature_strategy(base.config, arguments) or "default"


def _squares(values: Tensor, rows: int, area: int) -> Tensor:
    """Means of squares of `area` values: [B, n, c] in `rows` lines -> [B, n / area, c]."""
    lines = values.unflatten(1, (rows, -1)).permute(0, 3, 1, 2)
    return avg_pool2d(lines, math.isqrt(area)).flatten(2).mT
