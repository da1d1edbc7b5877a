"""The products of all pairs of vectors, read by rows, within a budget of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .blocks import budget, row_blocks

PAIRS = 2**18
"""Pairs that are read at once: 1 MiB of float32, which stays in the cache of a core."""


def gram(vectors: Tensor) -> Tensor:
    """All products of pairs of vectors, floating [..., N, N] of [..., N, d]; half of them are computed."""
    count = vectors.shape[-2]
    products = vectors.new_empty(*vectors.shape[:-1], count)
    for block in row_blocks(count):
        part = vectors[..., block, :] @ vectors[..., block.start :, :].mT
        products[..., block, block.start :] = part
        products[..., block.stop :, block] = part[..., part.shape[-2] :].mT
    return products


def gram_flops(count: int, width: int) -> int:
    """Floating-point operations of `gram` of so many vectors of this width."""
    return sum(2 * width * (block.stop - block.start) * (count - block.start) for block in row_blocks(count))


class Gram:
    """`gram`, kept if there is room for it, else computed a few rows at a time whenever they are read.

    Args:
        vectors: floating [..., N, d]: one set of vectors, or several of equal size that are not multiplied across.
        kernel: what is read in place of the products: an elementwise function of them.
        max_memory: bytes of what is kept, counted as 8 for a pair; None is `budget`.

    Attributes:
        count: N.
        device: of the vectors.
    """

    def __init__(
        self,
        vectors: Tensor,
        kernel: Callable[[Tensor], Tensor] = lambda products: products,
        max_memory: int | None = None,
    ) -> None:
        *sets, self.count, _ = vectors.shape
        self.device = vectors.device
        self._sets = math.prod(sets)
        self._first = (torch.arange(self._sets, device=vectors.device) * self.count).view(*sets, 1)
        self._vectors, self._kernel = vectors, kernel
        room = budget(vectors.device) if max_memory is None else max_memory
        self._kept = kernel(gram(vectors)) if 8 * self._sets * self.count**2 <= room else None

    def map_(self, function: Callable[[Tensor], Tensor]) -> None:
        """From here on what is read is a function of what was: elementwise, or of floating [..., m, N] by columns."""
        kernel = self._kernel
        self._kernel = lambda products: function(kernel(products))
        if self._kept is not None:
            self._kept = function(self._kept)

    def taken(self) -> Tensor | None:
        """All that is kept, floating [..., N, N], for whom this is not read again but by him; None if it is not."""
        return self._kept

    def rows(self, index: Tensor) -> Tensor:
        """New memory, floating [..., m, N]: of every set its rows int64 [..., m], or the same rows [m] of all."""
        index = index + self._first
        if self._kept is not None:
            return _taken(self._kept, index)
        return self._kernel(_taken(self._vectors, index) @ self._vectors.mT)

    def listed(self, places: Tensor) -> Tensor:
        """New memory, floating [m, N]: rows int64 [m], ascending, counted through all sets."""
        if self._kept is not None:
            return self._kept.flatten(0, -2).index_select(0, places)
        sets = self._vectors.view(self._sets, self.count, -1)
        counts = torch.bincount(places // max(1, self.count), minlength=self._sets).tolist()
        index = (places % max(1, self.count)).split(counts)
        return self._kernel(torch.cat([own[part] @ own.T for own, part in zip(sets, index, strict=True)]))

    def parts(self, index: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows, at most `PAIRS` pairs at a time: their index, int64 [m], and `rows` of it; of all rows if None."""
        if index is None:
            index = torch.arange(self.count, device=self._vectors.device)
        at_once = max(1, PAIRS // max(1, self._sets * self.count))
        for part in index.split(at_once) if len(index) > at_once else (index,):
            yield part, self.rows(part)

    def nearest(self) -> Tensor:
        """The largest value of each vector with another: floating [..., N]; -inf for one alone."""
        values = []
        for part, rows in self.parts():
            rows[..., torch.arange(len(part)), part] = -torch.inf
            values.append(rows.amax(-1))
        return torch.cat(values, -1)


def _taken(table: Tensor, places: Tensor) -> Tensor:
    """[..., m, n] of [..., N, n], by places int64 [..., m] counted through all sets."""
    return table.flatten(0, -2).index_select(0, places.flatten()).unflatten(0, places.shape)
