"""What the vision tower knows of each visual token: the attention it receives there, and its key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from .. import host
from ..errors import UnsupportedModel
from ..families.patches import Arguments, ToTokens
from ..families.table import FAMILIES, FROM_TOWER, NO_PLACE, families_of, missing
from ..pruners import PRUNERS
from ..pruners.base import Pruner
from .towers import reading


def check_needs(pruner: Pruner, model: PreTrainedModel) -> None:
    """Raise UnsupportedModel if the method needs what cannot be known of the visual tokens of this model."""
    family = model.config.model_type
    if missing(pruner, family) == NO_PLACE:
        raise UnsupportedModel(
            f"{type(pruner).__name__} must know where in the picture a token lies, which gprune does not for "
            f"{family}: {NO_PLACE}; use a family whose views do, such as llava, llava_next or qwen2_vl"
        )
    needed = next((need for need in FROM_TOWER if need in pruner.needs), None)
    if needed is not None and reader(pruner, model, "image") == (None, None):
        raise UnsupportedModel(
            f"{type(pruner).__name__} needs the {needed} of the vision tower, which gprune cannot read for "
            f"{family}; it can for {', '.join(families_of(pruner))}; use one of those, or a method that needs "
            f"only features: {', '.join(name for name, method in PRUNERS.items() if not method.needs)}"
        )


def reader(pruner: Pruner, model: PreTrainedModel, modality: str) -> tuple[Module | None, ToTokens | None]:
    """The tower, and how values of its patches become those of visual tokens, where the method needs to know."""
    known = FAMILIES[model.config.model_type].tower
    if known is None or not set(FROM_TOWER) & set(pruner.needs):
        return None, None
    tower: Module = getattr(model.base_model, known.name)
    tokens = known.video if modality == "video" else known.image
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
