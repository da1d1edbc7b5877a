"""What a KV cache that holds a pruned prompt must remember, kept on the cache object itself.

There it survives deep copies, and two sequences that are generated in turns do not mix. It also keeps on the model what
its conversation needs, so that what was begun pruned ends pruned, even where its run is detached meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..host import capacity_of, columns_of, counter_of

if TYPE_CHECKING:
    from .run import Run

ATTRIBUTE, LEASE = "_gprune_state", "_gprune_lease"


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
    """The pruned columns of a cache.

    Args:
        mask: bool [B, M], which of the first M columns of the cache hold a token. Columns after them are
            decoded tokens.
        dropped: how many columns of the caller's sequence are not in the cache.
        next_position: int64 [..., B, 1], position id that the caller gives to the token after these columns.
        shift: int64 [..., B, 1], the caller's position ids minus the LLM's after these columns: not 0 where the
            LLM's leave no gaps for dropped tokens.
        solid: int64 [], the first column after which all are text; the cache can be cropped to no fewer.
        static: only for a static cache.
    """

    mask: Tensor
    dropped: int
    next_position: Tensor
    shift: Tensor
    solid: Tensor
    static: StaticDecode | None = None

    def start(self, cached: int) -> Tensor:
        """int64 [..., B, 1]: the caller's position id of the next token, when `cached` columns are in the cache."""
        return self.next_position + cached - self.mask.shape[1]

    def taken(self, rows: Tensor) -> CacheState:
        """The state of a cache with these rows, int64 [B], of the one that it describes."""
        index = rows.to(self.mask.device)

        def of(values: Tensor) -> Tensor:
            return values.index_select(-2, index) if values.shape[-2] > 1 else values

        after, shift = of(self.next_position), of(self.shift)
        return replace(self, mask=of(self.mask), next_position=after, shift=shift, static=None)


def read_state(cache: Any) -> CacheState | None:
    """The state of a cache, or None if nothing in it was pruned."""
    state = getattr(cache, ATTRIBUTE, None)
    # A cache can be emptied and used again. Compiled code only decodes, and must not wait for the device.
    if state is not None and not torch.compiler.is_compiling() and columns_of(cache) == 0:
        return None
    return state


def write_state(cache: Any, state: CacheState) -> None:
    """Put the state on a cache that already holds the columns it describes."""
    if (capacity := capacity_of(cache)) is not None:
        columns = state.mask.shape[1]
        mask = torch.nn.functional.pad(state.mask, (0, capacity - columns), value=True)
        state = replace(state, static=StaticDecode(mask, state.next_position - state.shift - columns))
    setattr(cache, ATTRIBUTE, state)


def check_cropped(state: CacheState, cached: int) -> None:
    """Raise ValueError if a cache was cropped into its visual tokens, of which its caller cannot know the columns."""
    if cached < state.mask.shape[1] and cached < int(state.solid):
        raise ValueError(
            f"the cache was cropped to {cached} columns, into the visual tokens of a prompt, some of them dropped; "
            f"it can be cropped to {int(state.solid)} or more, to what follows them; prefill again"
        )


def lease_of(cache: Any) -> Lease | None:
    """What keeps on the model what the conversation of a cache needs; None if it did not begin under a run.

    A cache that was emptied, to be used again, is no conversation any more.
    """
    lease = getattr(cache, LEASE, None)
    return None if lease is None or columns_of(cache) == 0 else lease


def write_lease(cache: Any, lease: Lease) -> None:
    """Have a cache keep on the model what its conversation needs."""
    setattr(cache, LEASE, lease)
