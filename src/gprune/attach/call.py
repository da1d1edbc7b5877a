"""From the call that was made to the call that reaches the LLM, without the dropped visual tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .. import host
from .choosing import Prompt, choose, gather
from .columns import (
    Columns,
    all_types,
    check_mask,
    check_unpacked,
    drop_columns,
    own_types,
    read_columns,
    skip_replayed,
)
from .encoding import EncoderOutputs, encode, keep_rows, modalities
from .positions import next_position, renumber
from .state import CacheState, Lease

if TYPE_CHECKING:
    from .run import Run


def rewrite_call(
    model: PreTrainedModel, run: Run | None, call: dict[str, Any], state: CacheState | None
) -> dict[str, Any]:
    """Rewrite a forward call that carries images or videos, or goes on with a pruned cache.

    Args:
        model: the model that is called.
        run: by which images and videos of the call are pruned; None if it has none.
        call: all its arguments, by name.
        state: that of its cache; None if nothing in it was pruned.

    Returns:
        The arguments for forward; their encoder outputs carry the state for the cache that comes out.
        If nothing is dropped, now or before, they are those of the call, with the images encoded.

    Raises:
        ValueError: a call that cannot be pruned; says why and what to do.
    """
    check_mask(call)
    cached = host.columns_of(host.cache_of(call))
    untouched, state = state is None, state or _unpruned(model, call, cached)
    call = skip_replayed(model, call, state, cached)
    carried = modalities(call)
    columns = read_columns(model, call, state, cached, visual=bool(carried))
    given, outputs = encode(model, call, carried)
    call = own_types(given)
    if not carried or run is None:
        # Every decoded token comes this way.
        after = next_position(columns.positions, columns.new, otherwise=state.start(cached))
        columns = replace(columns, positions=columns.positions - state.shift)
        return _rewritten(call, outputs, columns, replace(state, mask=columns.mask, next_position=after))

    prompt = Prompt.of(model, call["input_ids"], columns.new, call.get("inputs_embeds"))
    for modality in carried:
        masks = run.masks if modality == "image" else ()
        gathered = gather(run.selector, run.family, model, modality, outputs[modality], prompt, masks)
        outputs.chosen[modality] = choose(run.selector, gathered)
    outputs.run, outputs.lease = run, Lease(run)
    run.report(outputs.chosen)
    everything = all(batch.everything for batch in outputs.chosen.values())
    if everything and untouched:
        return _handed_over(given, outputs)

    drop = torch.zeros_like(columns.new)
    for modality, batch in outputs.chosen.items():
        if not batch.whole:
            outputs[modality] = keep_rows(outputs[modality], run.family.output, batch.order, batch.kept, batch.merged)
            gone = ~batch.kept.to(drop.device)
            drop = drop | torch.zeros_like(drop).masked_scatter(prompt.placeholders[modality], gone)
    start = state.start(cached)
    positions = renumber(columns.positions, drop, state.shift, run.selector.positions)
    after = next_position(columns.positions, columns.new, otherwise=start)
    shift = after - next_position(positions, columns.new, otherwise=start - state.shift)
    columns = replace(columns, positions=positions)
    length = columns.new.shape[1]
    if not all(batch.whole for batch in outputs.chosen.values()):
        host.check_per_token(model, call)
        check_unpacked(model, call, cached)
        padding = int(bool(cached) and _mistakes_gaps(model, columns.positions))
        call, columns = drop_columns(call, columns, drop, text_token(model), padding)
        if cached and not columns.new.all():
            _check_padding(model)
    dropped = state.dropped + length - columns.new.shape[1]
    visual = torch.isin(call["input_ids"], call["input_ids"].new_tensor(host.placeholders(model.config)))
    ends = torch.arange(cached + 1, cached + 1 + visual.shape[1], device=visual.device)
    solid = torch.where(visual, ends, 0).amax()
    return _rewritten(call, outputs, columns, CacheState(columns.mask, dropped, after, shift, solid))


def _rewritten(call: dict[str, Any], outputs: EncoderOutputs, columns: Columns, state: CacheState) -> dict[str, Any]:
    """A call with these columns, whose cache comes out with this state."""
    outputs.state = state
    # The mask is never left out: without it and without a cache, gaps in position ids mean packed sequences.
    rewritten = {**call, "attention_mask": state.mask, "position_ids": columns.positions}
    return _handed_over(all_types(rewritten, columns.cached.shape[1]), outputs)


def _handed_over(call: dict[str, Any], outputs: EncoderOutputs) -> dict[str, Any]:
    """A call with what the encoders made; where embeddings are given, without the ids that were read from them."""
    outputs.ids = call["input_ids"]
    call = {**call, host.ENCODED: outputs}
    if call.get("inputs_embeds") is not None:
        del call["input_ids"]
    return call


def _unpruned(model: PreTrainedModel, call: dict[str, Any], cached: int) -> CacheState:
    """The state of a cache of which nothing was dropped: valid where the mask says so.

    Raises:
        ValueError: only the caller can know the position ids that come next.
    """
    ids, mask = call["input_ids"], call.get("attention_mask")
    zero = torch.zeros(ids.shape[0], 1, dtype=torch.long, device=ids.device)
    valid = zero.new_ones(ids.shape[0], cached) if mask is None else mask[:, :cached]
    after = zero + cached
    if host.has_rope_3d(model):
        if cached and call.get("position_ids") is None:
            raise ValueError(
                f"images come on a cache of {cached} columns of which none was pruned, without position_ids; "
                f"{model.config.model_type} remembers only where the prompt it saw last ended; pass position_ids of "
                f"shape [4, batch, length], or prefill all at once"
            )
        zero, after = zero.expand(4, -1, -1), after.expand(4, -1, -1)
    solid = torch.zeros((), dtype=torch.long, device=ids.device)
    return CacheState(valid.to(ids.device, torch.bool), dropped=0, next_position=after, shift=zero, solid=solid)


def _mistakes_gaps(model: PreTrainedModel, positions: Tensor) -> bool:
    """Whether gaps in these position ids, int64 [..., B, q], would be taken for the ends of packed sequences.

    So does FlashAttention with the only row of a batch, unless there is padding.
    """
    return "flash" in host.backend_of(host.decoder_of(model)) and positions.ndim == 2 and len(positions) == 1


def _check_padding(model: PreTrainedModel) -> None:
    """Raise ValueError if the LLM has layers that would not leave out padding after tokens in the cache."""
    if recurrent := host.recurrent_kinds(model.config):
        raise ValueError(
            f"the prompts of this call lose different numbers of tokens, so that padding comes between the cache "
            f"and them; the {' and '.join(sorted(recurrent))} layers of {model.config.model_type} do not leave it "
            f"out; pass one prompt at a time, not with FlashAttention, or all images in the first call"
        )


def text_token(model: PreTrainedModel) -> int:
    """A token id for padding, which the mask hides, but which must not count as a placeholder."""
    return next(token for token in range(3) if token not in host.placeholders(model.config))
