"""The columns that a layer of the LLM is left with: of its cache, of a call, and of the mask between the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ATTRIBUTE = "_gprune_layers"


@dataclass(frozen=True, eq=False)
class Left:
    """Which columns are left, in order; rows with fewer are padded on the left.

    Args:
        index: int64 [B, n], distinct columns of a row.
        valid: bool [B, n], False where a column stands only to pad.
        columns: out of so many; of a cache, later ones are all there.
    """

    index: Tensor
    valid: Tensor
    columns: int

    @classmethod
    def of(cls, kept: Tensor) -> Left:
        """The columns that are True in bool [B, q]."""
        width = int(kept.sum(dim=1).max())
        index = kept.long().argsort(dim=1, stable=True)[:, kept.shape[1] - width :]
        return cls(index, kept.gather(1, index), kept.shape[1])

    @classmethod
    def all(cls, batch: int, columns: int, device: torch.device) -> Left:
        """Every column."""
        index = torch.arange(columns, device=device).expand(batch, -1)
        return cls(index, torch.ones_like(index, dtype=torch.bool), columns)

    def then(self, start: int, other: Left) -> Left:
        """These, those from their end up to `start`, and the others counted from there."""
        batch, device = len(other.index), other.index.device
        own, valid = self.index.to(device).expand(batch, -1), self.valid.to(device).expand(batch, -1)
        between = torch.arange(self.columns, start, device=device).expand(batch, -1)
        index = torch.cat([own, between, start + other.index], dim=1)
        valid = torch.cat([valid, torch.ones_like(between, dtype=torch.bool), other.valid], dim=1)
        return Left(index, valid, start + other.columns)

    def cropped(self, columns: int) -> Left:
        """These without those from `columns` on, all of which must be there.

        Raises:
            ValueError: they are not.
        """
        cut = max(self.columns - columns, 0)
        start = self.index.shape[1] - cut
        tail = torch.arange(columns, columns + cut, device=self.index.device)
        if start < 0 or not (self.index[:, start:] == tail).all() or not self.valid[:, start:].all():
            raise ValueError(
                f"the cache was cropped to {columns} columns, into the visual tokens of a prompt, which are not the "
                f"same in every layer; it can be cropped to what follows them; prefill again"
            )
        return Left(self.index[:, :start], self.valid[:, :start], self.columns - cut)

    def taken(self, rows: Tensor) -> Left:
        """What is left of these rows, int64 [B], of them."""
        index = rows.to(self.index.device)
        return Left(self.index[index], self.valid[index], self.columns)

    def spread(self, values: Tensor) -> Tensor:
        """[B, n, ...] at the places of these columns of [B, columns, ...], 0 elsewhere."""
        extra = (1,) * (values.ndim - 2)
        index, valid = (own.to(values.device).view(*own.shape, *extra) for own in (self.index, self.valid))
        full = values.new_zeros(values.shape[0], self.columns, *values.shape[2:])
        return full.scatter(1, index.expand_as(values), values.masked_fill(~valid, 0))


def take(values: Tensor, index: Tensor, batch: int, dim: int) -> Tensor:
    """Entries of `dim` by index int64 [B, n], where the negative dimension `batch` is B or 1."""
    shape = [1] * values.ndim
    shape[batch], shape[dim] = index.shape
    return torch.take_along_dim(values, index.to(values.device).view(shape), dim)


def narrow_mask(mask: Tensor | None, cached: Left, new: Left, start: int, device: torch.device) -> Tensor | None:
    """The mask of a layer that is left with some columns.

    Args:
        mask: that of all columns: bool, or floating to be added, [B or 1, heads or 1, q, k]; None is causal, as far
            as there are several queries.
        cached: of the first columns of the cache.
        new: of the q columns of the call.
        start: columns of the whole cache; k = start + q.
        device: of the mask, where there was none.
    """
    columns = cached.then(start, new)
    if mask is None:
        if columns.valid.all():
            return None
        mask = torch.ones(1, 1, new.columns, start + new.columns, dtype=torch.bool, device=device).tril(start)
    mask = take(take(mask, new.index, -4, -2), columns.index, -4, -1)
    valid = columns.valid.to(mask.device)[:, None, None, :]
    mask = mask & valid if mask.dtype == torch.bool else mask.masked_fill(~valid, torch.finfo(mask.dtype).min)
    # What only pads must see something too, itself: not in every kernel is attention over nothing a number.
    mask.diagonal(columns.index.shape[1] - new.index.shape[1], -2, -1).fill_(1 if mask.dtype == torch.bool else 0)
    return mask


def read_layers(cache: Any, cached: int) -> dict[int, Left]:
    """What is left in the layers of a cache with so many columns that lost some.

    Raises:
        ValueError: the cache was cropped into visual tokens of which some were dropped.
    """
    if cache is not None and not cached:
        vars(cache).pop(_ATTRIBUTE, None)  # it was emptied, to be used again
    layers: dict[int, Left] = getattr(cache, _ATTRIBUTE, {})
    own = {id(left): left.cropped(cached) for left in layers.values()}
    return {layer: own[id(left)] for layer, left in layers.items()}


def take_rows(cache: Any, rows: Tensor) -> None:
    """Have what is left in the layers of a cache follow rows, int64 [B], that were taken of it."""
    layers: dict[int, Left] = getattr(cache, _ATTRIBUTE, {})
    own = {id(left): left.taken(rows) for left in layers.values()}
    if layers:
        setattr(cache, _ATTRIBUTE, {layer: own[id(left)] for layer, left in layers.items()})


def write_layers(cache: Any, layers: dict[int, Left]) -> None:
    """Put what is left in its layers on a cache that holds the columns it describes."""
    setattr(cache, _ATTRIBUTE, layers)
