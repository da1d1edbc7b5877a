"""From the call that was made to the call that reaches the LLM, without the dropped visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..pruners.base import Positions
from .columns import check_mask, drop_columns, lengthen, own_columns, read_columns, skip_replayed
from .encoder import PIXELS, Modality, encode, keep_rows, modalities
from .layouts import Layout
from .positions import model_offset, multimodal_rope, next_position, renumber
from .selection import BatchSelection
from .state import CacheState

Select = Callable[[Modality, ModelOutput, Tensor, Tensor], BatchSelection]
"""(modality, encoder's output, input_ids [B, q], placeholders bool [B, q]) -> what is kept of it."""


def rewrite_call(
    model: PreTrainedModel,
    layout: Layout,
    call: dict[str, Any],
    state: CacheState | None,
    select: Select,
    numbering: Positions,
) -> dict[str, Any]:
    """Rewrite a forward call that carries images or videos, or goes on with a pruned cache.

    Args:
        model: the model that is called.
        layout: of its family.
        call: all its arguments, by name.
        state: that of its cache; None if nothing in it was pruned.
        select: prunes the images, or the videos, of the call.
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
    untouched, state = state is None, state or _unpruned(model, call, cached)
    call = skip_replayed(model, call, state, cached)
    carried = modalities(call)
    columns = read_columns(model, call, state, cached, visual=bool(carried))
    given, outputs = encode(model, call, carried)
    call, lengthened = own_columns(given)

    drop = torch.zeros_like(columns.new)
    everything = True
    for modality in carried:
        ids = call["input_ids"]
        placeholders = ids == getattr(model.config, f"{modality}_token_id")
        batch = select(modality, outputs[modality], ids, placeholders)
        everything = everything and batch.everything
        if not batch.everything:
            outputs[modality] = keep_rows(outputs[modality], layout.output, batch.order, batch.kept)
            drop = drop | torch.zeros_like(drop).masked_scatter(placeholders, ~batch.kept.to(drop.device))
    if carried and everything and untouched:
        return {**given, "mm_encoder_outputs": outputs}

    start = state.start(cached)
    positions = renumber(columns.positions, drop, state.shift, numbering)
    after = next_position(columns.positions, columns.new, otherwise=start)
    shift = after - next_position(positions, columns.new, otherwise=start - state.shift)
    columns = replace(columns, positions=positions)
    length = columns.new.shape[1]
    if drop.any():
        call, columns = drop_columns(call, columns, drop, filler=_text_token(model))
    outputs.state = CacheState(
        mask=columns.mask,
        dropped=state.dropped + length - columns.new.shape[1],
        next_position=after,
        shift=shift,
    )
    call = lengthen(call, lengthened, cached)
    # The mask is never left out: without it and without a cache, gaps in position ids mean packed sequences.
    return {
        **call,
        "attention_mask": columns.mask,
        "position_ids": columns.positions,
        "mm_encoder_outputs": outputs,
    }


def _unpruned(model: PreTrainedModel, call: dict[str, Any], cached: int) -> CacheState:
    """The state of a cache of which nothing was dropped: valid where the mask says so."""
    ids, mask = call["input_ids"], call.get("attention_mask")
    zero = torch.zeros(ids.shape[0], 1, dtype=torch.long, device=ids.device)
    valid = zero.new_ones(ids.shape[0], cached) if mask is None else mask[:, :cached]
    after = zero + cached
    if multimodal_rope(model):
        offset = model_offset(model) if cached else None
        rope = after if offset is None else after + offset.to(after.device)
        zero, after = zero.expand(4, -1, -1), torch.stack([after, rope, rope, rope])
    return CacheState(valid.to(ids.device, torch.bool), dropped=0, next_position=after, shift=zero)


def _text_token(model: PreTrainedModel) -> int:
    """A token id for padding, which the mask hides, but which must not count as a placeholder."""
    placeholders = {getattr(model.config, f"{modality}_token_id", None) for modality in PIXELS}
    return next(token for token in range(3) if token not in placeholders)
