"""What the vision tower knows of each visual token: the attention it receives in a layer there, and its key.

The layer's own computation is left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from .. import host
from ..errors import UnsupportedModel
from ..families.patches import Arguments, ToTokens
from ..families.table import FAMILIES, FROM_TOWER, MIDDLE, NO_FRAMES, NO_PLACE, NO_TILES, families_of, missing
from ..host import BACKEND_FIELD, register_backend
from ..pruners import PRUNERS
from ..pruners.base import Need, Pruner

BACKEND = "gprune_read"

LOGITS_AT_ONCE = 2**25
"""Attention logits in memory at a time: 128 MiB of float32. One row of queries is never split."""


_READINGS: ContextVar[list[list[Reading]] | None] = ContextVar("gprune_readings", default=None)
"""What this thread is reading."""


def check_needs(pruner: Pruner, model: PreTrainedModel) -> None:
    """Raise UnsupportedModel if the method needs what cannot be known of the visual tokens of this model."""
    family = model.config.model_type
    if missing(pruner, family) == NO_PLACE:
        raise UnsupportedModel(
            f"{type(pruner).__name__} must know where in the picture a token lies, which gprune does not for "
            f"{family}: {NO_PLACE}; use a family whose views do, such as llava, llava_next or qwen2_vl"
        )
    reason = missing(pruner, family)
    if reason == NO_TILES:
        raise UnsupportedModel(
            f'{type(pruner).__name__} cannot go on {family} with shares="global": {reason}; pass shares="own", or '
            f"use a family that puts tiles together to a grid, such as llava_next"
        )
    if reason in NO_FRAMES.values():
        raise UnsupportedModel(
            f"{type(pruner).__name__} compares the frames of videos, which gprune cannot for {family}: {reason}; use "
            f"one of {', '.join(families_of(pruner))}, or another method"
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
    encode: Callable[[], Any],
    base: Any,
    tower: Module,
    tokens: ToTokens,
    arguments: Arguments,
    needs: Sequence[Need] = (),
) -> tuple[Any, dict[str, list[Tensor]]]:
    """Call an encoder, and read one layer of its tower on the way: the one whose output becomes the features.

    Where several layers do, the last of them; in towers with windows, the last layer without. A middle layer too, if
    it is needed.

    Args:
        encode: makes the call.
        base: whose encoder it is.
        tower: of `base`.
        tokens: takes values from patches to visual tokens.
        arguments: of the call.
        needs: of the method.

    Returns:
        What the encoder returns, and for each of its items "attention" float32 [n], "keys" float32 [n, dk], and
        "middle attention" float32 [n] if needed.
    """
    layers = host.attention_layers(tower)
    indices = {"attention": layer_index(base, tower, arguments)}
    if MIDDLE in needs:
        indices[MIDDLE] = middle_index(tower, indices["attention"])
    with reading([layers[index] for index in indices.values()], host.has_class_token(tower)) as readings:
        output = encode()
    features = getattr(output, host.POOLED, None)
    if features is None:
        return output, {}
    sizes = [len(item) for item in features]
    values = torch.cat(
        [
            torch.cat([*(each.attention[..., None] for each in of_layers), of_layers[0].keys], dim=-1)
            for of_layers in zip(*readings, strict=True)
        ]
    )
    flat = tokens(base, values, arguments, sum(sizes)).reshape(-1, values.shape[-1])
    signals = {name: list(column.split(sizes)) for name, column in zip(indices, flat.unbind(-1), strict=False)}
    return output, {**signals, "keys": list(flat[:, len(indices) :].split(sizes))}


def layer_index(base: Any, tower: Module, arguments: Arguments) -> int:
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


def middle_index(tower: Module, last: int) -> int:
    """Of the middle attention layer: 9 of 24 or as deep, at most `last`; in towers with windows one without."""
    index = middle_of(len(host.attention_layers(tower)), last)
    return min(host.whole_layers(tower) or (index,), key=lambda whole: abs(whole - index))


def middle_of(count: int, last: int) -> int:
    """The index of the middle one of `count` layers: 9 of 24 or as deep, at most `last`."""
    return min(count * 3 // 8, last)


@dataclass(frozen=True, eq=False)
class Reading:
    """What one layer of the tower says of its tokens, images or frames that do not see each other joined.

    Args:
        attention: float32 [B, n], the attention a token receives, averaged over heads: from the class token, or
            from all tokens that see it.
        keys: float32 [B, n, dk], as the attention uses them (rotated by place in some towers), averaged over heads.
    """

    attention: Tensor
    keys: Tensor


class _Config:
    """The config of an attention layer, but for the name of the backend."""

    def __init__(self, config: Any, class_token: bool) -> None:
        setattr(self, BACKEND_FIELD, BACKEND)
        self.config, self.class_token = config, class_token
        self.readings: list[Reading] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


@contextmanager
def reading(layers: Sequence[Module], class_token: bool) -> Iterator[list[list[Reading]]]:
    """While it lasts, a `Reading` is appended to the list of a layer whenever this thread calls it."""
    readings: list[list[Reading]] = [[] for _ in layers]

    def read(
        own: list[Reading], layer: Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None
    ) -> None:
        if _READINGS.get() is not readings or output is None:
            return  # another thread's call
        noting = _Config(layer.config, class_token)
        # The same weights in a layer of our own: other threads go on with this one.
        reader = copy.copy(layer)
        vars(reader)["config"] = noting
        with torch.no_grad():
            type(layer).forward(reader, *args, **kwargs)
        attention = torch.cat([each.attention for each in noting.readings], dim=1)
        own.append(Reading(attention, torch.cat([each.keys for each in noting.readings], dim=1)))

    token = _READINGS.set(readings)
    handles = [
        layer.register_forward_hook(partial(read, own), with_kwargs=True)
        for layer, own in zip(layers, readings, strict=True)
    ]
    try:
        yield readings
    finally:
        for handle in handles:
            handle.remove()
        _READINGS.reset(token)


def _note(
    layer: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """An attention backend that reads what it is given, [B, heads, n, dh] each; nobody looks at what it returns."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    received = attention_received(query, key, attention_mask, scaling, layer.config.class_token)
    layer.config.readings.append(Reading(received, key.float().mean(1)))
    return query.transpose(1, 2).contiguous(), None


register_backend(BACKEND, _note)


def attention_received(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, class_token: bool = False
) -> Tensor:
    """The attention that each token receives, averaged over heads: float32 [B, n].

    From the first token if that is a class token, else the mean over the tokens that see it. A token that none
    sees is padding: what it attends to does not count.

    Args:
        query, key: [B, heads, n, dh].
        mask: who sees whom, bool or additive, [B or 1, 1 or heads, n, n], or which tokens are seen, [B, n].
        scaling: of the logits.
    """
    batch, heads, count, _ = query.shape
    seen = _seen(mask, query)
    real = seen.any(1)
    rows = 1 if class_token else count
    step = max(1, LOGITS_AT_ONCE // (batch * heads * count))
    total = torch.zeros(batch, count, device=query.device)
    times = torch.zeros_like(total)
    with torch.autocast(query.device.type, enabled=False):
        keys = key.float().mT * scaling
        for start in range(0, rows, step):
            block = slice(start, min(start + step, rows))
            logits = query[:, :, block].float() @ keys
            logits.masked_fill_(~seen[:, None, block], torch.finfo(logits.dtype).min)
            counted = seen[:, block] & real[:, block, None]
            total += (logits.softmax(-1).mean(1) * counted).sum(1)
            times += counted.sum(1)
    return total / times.clamp(min=1)


def _seen(mask: Tensor | None, query: Tensor) -> Tensor:
    """bool [B, n, n], which tokens (last) each token sees."""
    batch, _, count, _ = query.shape
    if mask is None:
        mask = torch.ones(1, 1, dtype=torch.bool, device=query.device)
    if mask.is_floating_point():
        mask = mask > torch.finfo(mask.dtype).min / 2
    mask = mask[:, 0] if mask.ndim == 4 else mask[:, None]
    return mask.bool().expand(batch, count, count)
