"""What a KV cache that holds a pruned prompt must remember, kept on the cache object itself.

There it survives deep copies, and two sequences that are generated in turns do not mix. It also keeps on the model what
its conversation needs, so that what was begun pruned ends pruned, even where its run is detached meanwhile. Caches have
methods that take, repeat or permute their rows, which know nothing of it; so each row is marked by what only it holds:
the last key of its prompt, in a layer that has read all of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import UnsupportedModel
from ..host import NEXT, cache_of, capacity_of, columns_of, counter_of, keys_name, last_layer, replaces_keys
from .llm_columns import take_rows

if TYPE_CHECKING:
    from .hooks import Hooks
    from .run import Run

_ATTRIBUTE = "_gprune_conversation"


class Lease:
    """Held by calls and conversations that began under a run: while there is one, hooks stay on the model.

    A deep copy of a cache has its own; one that was stored and read back has none.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        assert run.hooks is not None
        self._hooks = run.hooks
        self._hooks.leases[id(self)] = None

    def __del__(self) -> None:
        self._hooks.release(id(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Lease:
        return Lease(self.run)

    def __reduce__(self) -> tuple[Any, ...]:
        return _none, ()


def _none() -> None:
    return None


@dataclass(frozen=True, eq=False)
class StaticDecode:
    """What decoding one token at a time into a static cache needs; constant, so that it can be compiled.

    Args:
        mask: bool [B, capacity], valid columns of the whole cache; the ones still to come count as valid.
        offset: int64 [..., B, 1], position id minus cache column of every token still to come.
    """

    mask: Tensor
    offset: Tensor

    def arguments(self, cache: Any) -> dict[str, Tensor]:
        """The arguments of forward that a pruned cache changes."""
        return {"attention_mask": self.mask, "position_ids": self.offset + counter_of(cache)}


@dataclass(frozen=True, eq=False)
class CacheState:
    """The columns of a cache as the last call with images left it; those after them are text, all of which is there.

    Args:
        mask: bool [B, M], which of the first M columns of the cache hold a token.
        dropped: how many columns of the caller's sequence are not in the cache.
        next_position: int64 [..., B, 1], position id that the caller gives to the token after these columns.
        shift: int64 [..., B, 1], the caller's position ids minus the LLM's after these columns: not 0 where the
            LLM's leave no gaps for dropped tokens.
        solid: int64 [], the first column after which all are text; the cache can be cropped to no fewer.
        full: whether all of these columns hold a token.
        shifted: whether `shift` may be anything but 0.
        static: only for a static cache.
    """

    mask: Tensor
    dropped: int
    next_position: Tensor
    shift: Tensor
    solid: Tensor
    full: bool = False
    shifted: bool = False
    static: StaticDecode | None = None

    @cached_property
    def columns(self) -> int:
        """How many columns are described: M."""
        return self.mask.shape[1]

    @cached_property
    def token_shape(self) -> tuple[int, int]:
        """That of input_ids with one token a row: (B, 1)."""
        return self.mask.shape[0], 1

    @cached_property
    def offset(self) -> Tensor | None:
        """int64 [..., B, 1]: the LLM's position ids of text after these columns, minus the caller's row of tokens.

        None where both number along one axis alike.
        """
        if self.shift.ndim == 3:
            return self.next_position - self.next_position[:1] - self.shift
        return -self.shift if self.shifted else None

    def start(self, cached: int) -> Tensor:
        """int64 [..., B, 1]: the caller's position id of the next token, when `cached` columns are in the cache."""
        return self.next_position + (cached - self.columns)

    def shown(self, mask: Tensor | None, cached: int) -> Tensor | None:
        """bool [B, cached + 1]: the attention mask of one more column, of which the caller gave this mask.

        None if it is of none of the shapes that it can have.
        """
        if mask is None:
            return pad(self.mask, (0, cached + 1 - self.columns), value=True)
        if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] - cached - 1 not in (0, self.dropped):
            return None
        return torch.cat([self.mask, mask[:, self.columns - cached - 1 :].to(self.mask)], dim=1)

    def cropped(self, cached: int) -> CacheState:
        """That of a cache of which only so many columns are left.

        Raises:
            ValueError: it was cropped into its visual tokens, of which its caller cannot know the columns.
        """
        if cached < int(self.solid):
            raise ValueError(
                f"the cache was cropped to {cached} columns, into the visual tokens of a prompt, some of them dropped; "
                f"it can be cropped to {int(self.solid)} or more, to what follows them; prefill again"
            )
        return replace(self, mask=self.mask[:, :cached], next_position=self.start(cached))

    def taken(self, rows: Tensor) -> CacheState:
        """The state of a cache with these rows, int64 [B], of the one that it describes."""
        index = rows.to(self.mask.device)

        def of(values: Tensor) -> Tensor:
            return values.index_select(-2, index) if values.shape[-2] > 1 else values

        after, shift = of(self.next_position), of(self.shift)
        return replace(self, mask=of(self.mask), next_position=after, shift=shift, static=None)

    def for_static(self, cache: Any) -> CacheState:
        """The same, with what decoding needs if the cache is static."""
        if (capacity := capacity_of(cache)) is None:
            return self
        mask = pad(self.mask, (0, capacity - self.columns), value=True)
        return replace(self, static=StaticDecode(mask, self.next_position - self.shift - self.columns))


@dataclass(eq=False)
class Rows:
    """The rows that a cache held when it was last looked at.

    Args:
        layer: of the cache, that tells them.
        name: what it calls its keys.
        keys: those it held them in; others in their place mean that something was done to the cache. None while a call
            is under way.
        told: whether nothing can be done to the cache that leaves them there.
        column: of the keys, whose value marks a row.
        marks: [B, d], the value.
    """

    layer: Any
    name: str
    keys: Tensor | None
    told: bool
    column: int
    marks: Tensor

    def moved(self, keys: Tensor) -> Tensor | None:
        """Of each row of a cache with these keys, which one it was: int64 [B]; None where the mark was cropped away.

        Raises:
            UnsupportedModel: some row is none of them.
        """
        marks = keys[:, 0, self.column : self.column + 1]
        if not marks.shape[1]:
            return None
        same = (marks == self.marks.to(marks.device)).all(-1)
        if not same.any(dim=1).all():
            raise UnsupportedModel(
                "the rows of a cache whose prompt was pruned were replaced by others since gprune last saw it; "
                "accepted are the rows it was filled with, also some of them, repeated or permuted; prefill again"
            )
        # A row that is where it was stays there, whatever other rows are like it.
        own = torch.arange(len(same), device=same.device)
        stays = same.diagonal() if len(same) <= same.shape[1] else torch.zeros_like(own, dtype=torch.bool)
        return torch.where(stays, own, same.int().argmax(dim=1))


@dataclass(eq=False)
class Conversation:
    """What lies on a cache.

    Args:
        lease: keeps on the model what the conversation needs; None after the cache was stored and read back.
        state: None if nothing was dropped.
        rows: None if no layer of the cache tells them.
    """

    lease: Lease | None
    state: CacheState | None = None
    rows: Rows | None = None

    def begin(self, cache: Any, last: int) -> None:
        """Lie on a cache that the call with images has filled.

        Args:
            last: how many of its last columns begin with the last token of the prompt.
        """
        if self.state is not None:
            self.state = self.state.for_static(cache)
        layer = last_layer(cache)
        name = keys_name(layer)
        if (keys := getattr(layer, name, None)) is not None:
            # Some layers hold no more than the first prompt, which tells rows as well.
            column = min(max(columns_of(layer) - last, 0), keys.shape[-2] - 1)
            self.rows = Rows(layer, name, keys, replaces_keys(layer), column, keys[:, 0, column].clone())
        setattr(cache, _ATTRIBUTE, self)

    def mark(self) -> None:
        """Remember which keys the rows of the cache have, as it comes out of a later call."""
        if self.rows is not None:
            self.rows.keys = getattr(self.rows.layer, self.rows.name)

    def follow(self, cache: Any, keys: Tensor) -> None:
        """Bring what is remembered into the order of the rows of the cache, which has these keys now."""
        assert self.rows is not None
        rows = self.rows.moved(keys)
        if rows is None:
            return
        self.rows.keys, self.rows.marks = keys, keys[:, 0, self.rows.column].clone()
        take_rows(cache, rows)
        if self.state is not None:
            self.state = self.state.taken(rows).for_static(cache)


def mark_rows(cache: Any) -> None:
    """Remember which keys the rows of a cache have, as it comes out of a call, if a conversation lies on it."""
    conversation: Conversation | None = getattr(cache, _ATTRIBUTE, None)
    if conversation is not None:
        conversation.mark()


def conversation_of(cache: Any) -> Conversation | None:
    """What lies on a cache; None if it was not filled by a call that began under a run.

    It is brought into the order of the cache's rows and to its length, where its user changed those. A cache that was
    emptied, to be used again, is no conversation any more.

    Raises:
        UnsupportedModel, ValueError: what was done to the cache cannot be followed.
    """
    conversation: Conversation | None = getattr(cache, _ATTRIBUTE, None)
    if conversation is None or torch.compiler.is_compiling():  # compiled code only decodes
        return conversation
    rows = conversation.rows
    keys = None if rows is None else getattr(rows.layer, rows.name)
    if rows is not None and rows.told and keys is not None and keys is rows.keys:
        return conversation
    if not (cached := columns_of(cache)):
        delattr(cache, _ATTRIBUTE)
        return None
    if rows is not None and keys is not None and keys is not rows.keys:
        conversation.follow(cache, keys)
    if conversation.state is not None and cached < conversation.state.columns:
        conversation.state = conversation.state.cropped(cached)
    return conversation


class WholeInputs:
    """What `generate()` hands to forward, unless it goes on with a pruned cache in chunks.

    Of a sequence that is read in chunks `generate()` takes mask and positions by the columns of the cache, which of a
    pruned one are those of dropped tokens.

    Args:
        prepare: the method of the model.
        hooks: of the model.
    """

    def __init__(self, prepare: Callable[..., dict[str, Any]], hooks: Hooks) -> None:
        self.prepare, self.hooks = prepare, hooks
        self.__signature__ = inspect.signature(prepare)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What the model itself returns.

        Raises:
            ValueError: the cache is pruned, and the call one of chunks.
        """
        if NEXT not in kwargs:
            conversation = conversation_of(cache_of(kwargs))
            if conversation is not None and conversation.state is not None and conversation.state.dropped:
                raise ValueError(
                    f"generate() goes on in chunks with a cache from which {conversation.state.dropped} tokens were "
                    f"dropped, and numbers what is new by the columns of that; accepted is all at once; leave out "
                    f"prefill_chunk_size"
                )
        return self.prepare(*args, **kwargs)
