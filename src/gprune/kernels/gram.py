"""The products of all pairs of vectors, read by rows, within a budget of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .blocks import PAIRS, budget, row_blocks


def gram(vectors: Tensor) -> Tensor:
    """All products of pairs of vectors, floating [N, N] of [N, d]; half of them are computed."""
    products = vectors.new_empty(len(vectors), len(vectors))
    for block in row_blocks(len(vectors)):
        part = vectors[block] @ vectors[block.start :].T
        products[block, block.start :] = part
        products[block.stop :, block] = part[:, len(part) :].T
    return products


def gram_flops(count: int, width: int) -> int:
    """Floating-point operations of `gram` of so many vectors of this width."""
    return sum(2 * width * (block.stop - block.start) * (count - block.start) for block in row_blocks(count))


class Gram:
    """`gram`, kept if there is room for it, else computed a few rows at a time whenever they are read.

    Args:
        vectors: floating [N, d].
        kernel: what is read in place of the products: an elementwise function of them.
        max_memory: bytes of what is kept, counted as 8 for a pair; None is `budget`.
    """

    def __init__(
        self,
        vectors: Tensor,
        kernel: Callable[[Tensor], Tensor] = lambda products: products,
        max_memory: int | None = None,
    ) -> None:
        self._vectors, self._kernel = vectors, kernel
        room = budget(vectors.device) if max_memory is None else max_memory
        self._kept = kernel(gram(vectors)) if 8 * len(vectors) ** 2 <= room else None

    def rows(self, index: Tensor) -> Tensor:
        """New memory, floating [m, N], of rows int64 [m]."""
        if self._kept is not None:
            return self._kept.index_select(0, index)
        return self._kernel(self._vectors.index_select(0, index) @ self._vectors.T)

    def parts(self, index: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows, as many at a time as a block has: their index, int64 [m], and `rows` of it; of all rows if None."""
        count = len(self._vectors)
        if index is None:
            index = torch.arange(count, device=self._vectors.device)
        at_once = max(1, PAIRS // max(1, count))
        for part in index.split(at_once) if len(index) > at_once else (index,):
            yield part, self.rows(part)

    def nearest(self) -> Tensor:
        """The largest value of each vector with another: floating [N]; -inf for one alone."""
        values = [rows.scatter_(1, part[:, None], -torch.inf).amax(1) for part, rows in self.parts()]
        return torch.cat(values)
