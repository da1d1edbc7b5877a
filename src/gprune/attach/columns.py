"""The columns of a call: what its caller sees, what is cached, and what is left when tokens are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from .. import host
from ..host import ALIGNED, EXPERT_TYPES, LOGITS, TOKEN_TYPES
from .conversation import CacheState, WholeInputs, conversation_of
from .positions import read_positions, token_row


@dataclass(frozen=True, eq=False)
class TokenColumns:
    """The columns of one call.

    Args:
        cached: bool [B, c], which columns of the cache hold a token.
        new: bool [B, q], which columns of input_ids hold a token.
        positions: int64 [..., B, q], position ids as the caller counts, later as the LLM is told them.
    """

    cached: Tensor
    new: Tensor
    positions: Tensor

    @property
    def mask(self) -> Tensor:
        """bool [B, c + q]: the attention mask."""
        return torch.cat([self.cached, self.new], dim=1)


def skip_replayed(model: PreTrainedModel, call: dict[str, Any], state: CacheState, cached: int) -> dict[str, Any]:
    """Take columns that are already in the cache off the front of a call.

    When a conversation goes on, `generate()` slices its input_ids by the length of the cache. A pruned cache
    is shorter than the text it stands for, so too many are left. Their position ids tell: they begin before
    the end of the cache.
    """
    ids, positions, mask = call["input_ids"], call.get("position_ids"), call.get("attention_mask")
    if positions is None or state.dropped == 0 or ids.shape[1] <= state.dropped:
        return call
    tokens = token_row(model, positions)
    if tokens is None:
        return call
    first = 0 if mask is None else int(mask[0, -ids.shape[1] :].long().argmax())
    expected = state.next_position.reshape(-1, 1)[0] + cached - state.columns
    if int(tokens[0, first]) >= int(expected):
        return call
    return _without_first(call, state.dropped)


def _without_first(call: dict[str, Any], count: int) -> dict[str, Any]:
    """A call without its first columns."""
    aligned = {name: call[name] for name in ("input_ids", "position_ids", *ALIGNED) if call.get(name) is not None}
    length = call["input_ids"].shape[1]
    aligned = {name: values for name, values in aligned.items() if values.shape[-1] == length}
    return {**call, **{name: values[..., count:] for name, values in aligned.items()}}


class NewInputs(WholeInputs):
    """What `generate()` hands to forward where it hands no position ids on, that `skip_replayed` reads.

    It takes as many tokens off the front as the cache holds, which of a pruned cache are too few. But it knows its
    whole sequence, and here it is asked before that is forgotten.
    """

    def __call__(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What the model itself returns, with only those tokens that its cache does not stand for.

        Raises:
            ValueError: which tokens are new cannot be told.
        """
        inputs = super().__call__(input_ids, *args, **kwargs)
        cache, positions = host.cache_of(inputs), kwargs.get("position_ids")
        cached = host.columns_of(cache)
        conversation = conversation_of(cache)
        ids = inputs.get("input_ids")
        if conversation is None or conversation.state is None or ids is None or positions is None:
            return inputs
        whole, held = positions.shape[-1], cached + conversation.state.dropped
        old = ids.shape[1] - (whole - held)
        if not 0 <= old < ids.shape[1] or (old and input_ids.shape[1] != whole):
            raise ValueError(
                f"generate() goes on with {input_ids.shape[1]} tokens of a sequence of {whole}, and a cache that "
                f"stands for {held}, some of which were dropped; accepted are all tokens, those that the cache stands "
                f"for and at least one more, or what is new alone with the attention_mask of all; pass one of these, "
                f"without prefill_chunk_size"
            )
        return _without_first(inputs, old) if old else inputs


def read_columns(
    model: PreTrainedModel, call: dict[str, Any], state: CacheState, cached: int, visual: bool
) -> TokenColumns:
    """The columns of a call as its caller sees and numbers them, next to the `cached` columns of the cache.

    Args:
        visual: whether the call carries images or videos.

    Raises:
        ValueError: the attention mask has the wrong length, or the batch is not the cache's.
    """
    ids, mask = call["input_ids"], call.get("attention_mask")
    batch, length = ids.shape
    later = cached - state.columns
    if mask is None:
        told = torch.ones(batch, later + length, dtype=torch.bool, device=ids.device)
    else:
        _check_length(mask, {length + cached, length + cached + state.dropped})
        told = mask[:, -(later + length) :].to(ids.device, torch.bool)
    if state.mask.shape[0] not in (1, batch):
        raise ValueError(
            f"input_ids has {batch} rows but the pruned cache was filled with {state.mask.shape[0]}; "
            f"a cache goes on with the rows it was filled with, or from one row to many; prefill again"
        )
    known, new = torch.cat([state.mask.expand(batch, -1), told[:, :later]], dim=1), told[:, later:]
    return TokenColumns(known, new, read_positions(model, call, state, state.start(cached), new, visual))


def own_types(call: dict[str, Any]) -> dict[str, Any]:
    """A call whose token types are those of the columns of input_ids.

    `generate()` gives some families the types of the cached columns too, and of drafted tokens, which are text,
    none.
    """
    length = call["input_ids"].shape[1]
    types = {name: call[name] for name in TOKEN_TYPES if call.get(name) is not None}
    return {**call, **{name: pad(own[:, -length:], (0, max(0, length - own.shape[1]))) for name, own in types.items()}}


def all_types(call: dict[str, Any], cached: int) -> dict[str, Any]:
    """A call whose token types cover `cached` columns before those of input_ids too.

    Families that look types up do it by column of the cache, where anything but text is done with; experts are chosen
    for the tokens of a call alone.
    """
    types = {name: call[name] for name in TOKEN_TYPES if name != EXPERT_TYPES and call.get(name) is not None}
    return {**call, **{name: pad(own, (cached, 0)) for name, own in types.items()}}


def drop_columns(
    call: dict[str, Any], columns: TokenColumns, drop: Tensor, filler: int, padding: int = 0
) -> tuple[dict[str, Any], TokenColumns]:
    """A call without the tokens that are True in `drop`.

    Rows can lose different numbers of tokens: they are padded where the caller padded, else on the left.

    Args:
        call: the arguments by name.
        columns: those of the call.
        drop: bool [B, q].
        filler: token id for padding, not a placeholder.
        padding: columns of padding that every row has at least.

    Returns:
        The call with every argument that has a value per column shortened, and its columns.

    Raises:
        ValueError: logits are asked for by the index of a column.
    """
    if isinstance(call.get(LOGITS), Tensor):
        raise ValueError(
            f"{LOGITS} is a tensor of column indices, which pruning changes; accepted is the number of "
            "last columns; pass an int, 0 for all logits"
        )
    keep = columns.new & ~drop
    width = int(keep.sum(dim=1).max()) + padding
    if columns.new[:, -1].all():
        index = keep.long().argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    else:
        index = (~keep).long().argsort(dim=1, stable=True)[:, :width]
    new = keep.gather(1, index)

    def gather(values: Tensor, fill: int) -> Tensor:
        rows = index.to(values.device).expand(*values.shape[:-1], width)
        return values.gather(-1, rows).masked_fill(~new.to(values.device), fill)

    aligned = {name: gather(call[name], fill) for name, fill in ALIGNED.items() if call.get(name) is not None}
    if (embeddings := call.get("inputs_embeds")) is not None:
        rows, shown = index.to(embeddings.device)[..., None], new.to(embeddings.device)[..., None]
        aligned["inputs_embeds"] = embeddings.take_along_dim(rows, 1).masked_fill(~shown, 0)
    call = {**call, **aligned, "input_ids": gather(call["input_ids"], filler)}
    return call, TokenColumns(columns.cached, new, gather(columns.positions, 0))


def _check_length(mask: Tensor, accepted: set[int]) -> None:
    if mask.shape[1] not in accepted:
        raise ValueError(
            f"attention_mask has {mask.shape[1]} columns; with this cache and these input_ids it must have "
            f"{' or '.join(map(str, sorted(accepted)))}; pass one that covers the tokens so far and the new"
        )
