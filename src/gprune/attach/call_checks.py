"""Calls that would be answered wrong if they were pruned, or gone on with, and are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .. import host
from ..errors import UnsupportedModel
from ..pruners.base import Method
from .assisted import is_drafted
from .positions import token_row

NO_IDS = "inputs_embeds is given without input_ids, in which the images' placeholders would be found"


def check_mask(call: dict[str, Any]) -> None:
    """Raise ValueError if the attention mask of a call is anything but 2-D or absent."""
    mask = call.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        given = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise ValueError(
            f"attention_mask is {given}; pruning shortens the sequence, so it needs the processor's 2-D mask "
            f"[batch, length]; pass that, or none if nothing is padded"
        )


def check_unpacked(model: PreTrainedModel, call: dict[str, Any], cached: int) -> None:
    """Raise ValueError if the rows of a call are packs of sequences, whose ends would be lost with dropped tokens."""
    packed = any(call.get(name) is not None for name in host.PACKED)
    positions = call.get("position_ids")
    if positions is not None and call.get("attention_mask") is None and not cached:
        tokens = token_row(model, positions)
        steps = None if tokens is None else tokens.diff(dim=-1)
        # Without a cache, a gap ends a sequence too.
        alone = call.get("use_cache") is False or model.training
        packed = packed or (steps is not None and bool(((steps != 1) if alone else (steps < 1)).any()))
    if packed:
        raise ValueError(
            "several sequences are packed into one row (position_ids that begin anew, without an attention_mask, or "
            f"{' or '.join(host.PACKED)}): dropping visual tokens would let them see each other; accepted is one "
            "sequence a row, padded, with its attention_mask; pad in the place of packing, or keep everything"
        )


def check_continuation(call: Mapping[str, Any], columns: int) -> None:
    """Raise UnsupportedModel if a call goes on with what was just pruned, but not with its cache.

    That is a single token beside as many cached columns as were just filled, or beside a mask or position that says
    that more came before it than its cache holds.

    Args:
        call: one without images, whose cache has no state.
        columns: of the cache that the pruned call before it filled.
    """
    ids, mask, positions = (call.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    if ids is None or ids.shape[1] != 1 or call.get("use_cache") is False:
        return
    cache = host.cache_of(call)
    cached = host.columns_of(cache)
    before = 0
    if isinstance(mask, Tensor) and mask.ndim == 2:
        before = mask.shape[1] - 1
    elif isinstance(positions, Tensor):
        before = int(positions.max())
    if cached == columns or before > cached or (cache is None and mask is None and positions is None):
        held = "no KV cache" if cache is None else f"a KV cache of {cached} columns that gprune did not see filled"
        raise UnsupportedModel(
            f"the call before this one pruned a prompt, and this one goes on with one token and {held}, so that "
            f"it would be answered wrong; accepted is the cache that the pruned call returned, or a copy.deepcopy of "
            f"it, under {' or '.join(host.CACHES)} in transformers {host.installed()}; pass that, or use_cache=False "
            f"for a prompt of its own"
        )


def check_step_lengths(method: Method, call: Mapping[str, Any]) -> None:
    """Raise ValueError if assisted decoding wants states of layers that each have tokens of their own."""
    states = call.get("output_hidden_states") or call.get("output_attentions")
    if states and call.get(host.ENCODED) and is_drafted(call) and method.acts == "in the LLM":
        raise ValueError(
            f"assisted decoding with output_hidden_states or output_attentions cuts them by one length for all layers, "
            f"which differ with {type(method).__name__}; accepted is one without the other; leave either out"
        )


def check_padding(model: PreTrainedModel) -> None:
    """Raise ValueError if the LLM has layers that would not leave out padding after tokens in the cache."""
    if recurrent := host.recurrent_kinds(model.config):
        raise ValueError(
            f"the prompts of this call lose different numbers of tokens, so that padding comes between the cache "
            f"and them; the {' and '.join(sorted(recurrent))} layers of {model.config.model_type} do not leave it "
            f"out; pass one prompt at a time, not with FlashAttention, or all images in the first call"
        )


def check_new_padding(model: PreTrainedModel, before: Tensor, after: Tensor) -> None:
    """Raise ValueError if pruning pads a batch that was not padded, and the LLM loses sight of padding.

    Args:
        before, after: bool [B, q], which columns of the call hold a token without pruning and with it.
    """
    if (kinds := host.windowed_kinds(model.config)) and before.all() and not after.all():
        raise ValueError(
            f"the prompts of this call lose different numbers of tokens, so that some must be padded; the "
            f"{' and '.join(sorted(kinds))} layers of {model.config.model_type} take padding for tokens once more was "
            f"generated than their window holds; pass one prompt at a time, or prompts that lose as many tokens"
        )


def check_known_cache(model: PreTrainedModel, call: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel if a call has placeholders but no images, on a cache that gprune has not seen filled."""
    ids, cached = call["input_ids"], host.columns_of(host.cache_of(call))
    if cached and ids.shape[1] > 1 and torch.isin(ids, ids.new_tensor(host.placeholders(model.config))).any():
        raise UnsupportedModel(
            f"input_ids has placeholders of images, but no image comes with them, and the KV cache of {cached} "
            f"columns is none that gprune has seen filled, as one that was stored and put together anew; "
            f"accepted is the cache that the pruned call returned, or a copy.deepcopy of it; prefill again"
        )
