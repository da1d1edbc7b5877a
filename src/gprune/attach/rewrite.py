"""From the call that was made to the call that reaches the LLM, without the dropped visual tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..pruners.base import Positions
from .columns import check_mask, drop_columns, read_columns, skip_replayed
from .encoder import EncoderOutputs, encode_images, has_images, image_features, keep_rows
from .selection import BatchSelection
from .state import CacheState


def rewrite_call(
    model: PreTrainedModel,
    call: dict[str, Any],
    state: CacheState | None,
    select: Callable[[Sequence[Tensor]], BatchSelection],
    numbering: Positions,
) -> dict[str, Any]:
    """Rewrite a forward call that carries images, or goes on with a pruned cache.

    Args:
        model: the model that is called.
        call: all its arguments, by name.
        state: that of its cache; None if nothing in it was pruned.
        select: prunes the features of the images.
        numbering: "original" position ids have gaps where tokens were dropped, "contiguous" ones have none.

    Returns:
        The arguments for forward; their `mm_encoder_outputs` carries the state for the cache that comes out.
        If nothing is dropped, now or before, they are those of the call, with the images encoded.

    Raises:
        ValueError: a call that cannot be pruned; says why and what to do.
    """
    check_mask(call)
    cache = call.get("past_key_values")
    cached = int(cache.get_seq_length()) if cache is not None else 0
    untouched, state = state is None, state or _unpruned(call, cached)
    call = skip_replayed(call, state, cached)
    columns = read_columns(call, state, cached)

    outputs = EncoderOutputs()
    drop = torch.zeros_like(columns.new)
    if has_images(call):
        call, outputs = encode_images(model, call)
        placeholders = call["input_ids"] == model.config.image_token_id
        features = image_features(outputs["image"])
        _check_count(placeholders, features)
        batch = select(features)
        if batch.everything and untouched:
            return {**call, "mm_encoder_outputs": outputs}
        outputs["image"] = keep_rows(outputs["image"], batch.kept)
        drop = drop.masked_scatter(placeholders, ~batch.kept.to(drop.device))

    next_position = columns.next_position(otherwise=state.next_position + cached - state.mask.shape[1])
    shift, positions = state.shift, columns.positions - state.shift
    if numbering == "contiguous":
        count = drop.cumsum(dim=1)
        shift, positions = shift + count[:, -1:], positions - count
    columns = replace(columns, positions=positions)
    length = columns.new.shape[1]
    if drop.any():
        call, columns = drop_columns(call, columns, drop, filler=_text_token(model))
    outputs.state = CacheState(
        mask=columns.mask,
        dropped=state.dropped + length - columns.new.shape[1],
        next_position=next_position,
        shift=shift,
    )
    # The mask is never left out: without it and without a cache, gaps in position ids mean packed sequences.
    return {
        **call,
        "attention_mask": columns.mask,
        "position_ids": columns.positions,
        "mm_encoder_outputs": outputs,
    }


def _unpruned(call: dict[str, Any], cached: int) -> CacheState:
    """The state of a cache of which nothing was dropped: valid where the mask says so."""
    ids, mask = call["input_ids"], call.get("attention_mask")
    zero = torch.zeros(ids.shape[0], 1, dtype=torch.long, device=ids.device)
    valid = zero.new_ones(ids.shape[0], cached) if mask is None else mask[:, :cached]
    return CacheState(valid.to(ids.device, torch.bool), dropped=0, next_position=zero + cached, shift=zero)


def _check_count(placeholders: Tensor, features: Sequence[Tensor]) -> None:
    given, needed = int(placeholders.sum()), sum(image.shape[0] for image in features)
    if given != needed:
        raise ValueError(
            f"input_ids has {given} image placeholders but the images of this call ({len(features)}) have "
            f"{needed} visual tokens; the numbers must be equal; pass input_ids and pixel_values as the "
            f"processor made them, without prefill_chunk_size, and when going on with a cache only new images"
        )


def _text_token(model: PreTrainedModel) -> int:
    """A token id for padding, which the mask hides, but which must not count as a placeholder."""
    placeholders = {getattr(model.config, f"{modality}_token_id", None) for modality in ("image", "video")}
    return next(token for token in range(3) if token not in placeholders)
