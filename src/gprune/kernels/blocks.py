"""The cosine graph of a view by blocks of rows: every pair of tokens once, and no more kept than a budget allows.

Cosine similarity is symmetric, so a block of rows is compared with itself and with the rows after it only: half of
the product. Its edges stay in memory as they are, or as a list where few pairs are edges; what the budget does not
hold is computed anew in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

MAX_MEMORY = {"cpu": 2**29, "cuda": 2**30}
"""Bytes of pairs kept between two steps, by kind of device. 32 LLaVA-NeXT images have 0.72 GB of them."""

TILE_PAIRS = 2**24
"""Pairs of a block at most: 64 MiB of float32."""

_LISTED = 12
"""Bytes of an edge in a list: its row and column, int32, and its weight, float32."""


def representativeness(
    features: Tensor, scores: Tensor, similarity: float, iterations: int, temperature: float, max_memory: int
) -> tuple[Tensor, Tensor]:
    """`gprune.graph.representativeness` of one view, without the weights of all its pairs at once.

    Args:
        features: floating [N, d], finite.
        scores: S(0), float32 [N].
        similarity, iterations, temperature: see `gprune.graph.representativeness`.
        max_memory: bytes of edges kept between steps.
    """
    with torch.autocast(features.device.type, enabled=False):
        graph = BlockedGraph(features, similarity, temperature, max_memory)
        for _ in range(iterations):
            scores = graph.step(scores)
        return scores / graph.degrees, graph.degrees


class _Dense(NamedTuple):
    """All weights of a block: float32 [b, n], its own b rows first among the columns."""

    weights: Tensor

    def times(self, values: Tensor) -> Tensor:
        """E v: float32 [b] of float32 [n]."""
        return self.weights @ values

    def across(self, values: Tensor) -> Tensor:
        """v E on the columns that are no rows of the block: float32 [n - b] of float32 [b]."""
        return values @ self.weights[:, len(values) :]


class _Listed(NamedTuple):
    """The weights of a block that are not 0, by rows."""

    rows: Tensor
    columns: Tensor
    weights: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, weights: Tensor) -> _Listed:
        rows, columns = weights.nonzero(as_tuple=True)
        return cls(rows.int(), columns.int(), weights[rows, columns], weights.shape)

    def times(self, values: Tensor) -> Tensor:
        terms = values.index_select(0, self.columns).mul_(self.weights)
        return values.new_zeros(self.shape[0]).index_add_(0, self.rows, terms)

    def across(self, values: Tensor) -> Tensor:
        terms = values.index_select(0, self.rows).mul_(self.weights)
        return values.new_zeros(self.shape[1]).index_add_(0, self.columns, terms)[self.shape[0] :]


class BlockedGraph:
    """The graph of `gprune.graph.cosine_graph` for one view, without its [N, N] weights.

    Args:
        features: floating [N, d], finite.
        similarity, temperature: see `gprune.graph.cosine_graph`.
        max_memory: bytes of weights kept between steps.

    Attributes:
        degrees: int64 [N], edges of each token, itself included.
        totals: float32 [N], row sums of the weights.
    """

    def __init__(self, features: Tensor, similarity: float, temperature: float, max_memory: int) -> None:
        self._directions = directions(features)
        self._similarity, self._temperature = similarity, temperature
        self._kept: list[_Dense | _Listed | None] = []
        count = len(features)
        self.degrees = torch.zeros(count, dtype=torch.int64, device=features.device)
        self.totals = torch.zeros(count, device=features.device)
        for block in row_blocks(count):
            weights, edges = self._weights(block)
            size = len(weights)
            degrees = edges.sum(1)
            self.degrees[block] += degrees
            self.degrees[block.stop :] += edges[:, size:].sum(0)
            self.totals[block] += weights.sum(1)
            self.totals[block.stop :] += weights[:, size:].sum(0)
            kept, max_memory = _keep(weights, int(degrees.sum()), max_memory)
            self._kept.append(kept)

    def step(self, scores: Tensor) -> Tensor:
        """S <- (S / row sums) E, float32 [N] of float32 [N] (Eq. 3)."""
        shares, received = scores / self.totals, torch.zeros_like(scores)
        for block, kept in zip(row_blocks(len(scores)), self._kept, strict=True):
            part = kept or _Dense(self._weights(block)[0])
            received[block] += part.times(shares[block.start :])
            received[block.stop :] += part.across(shares[block])
        return received

    def _weights(self, block: slice) -> tuple[Tensor, Tensor]:
        """Weights, float32, and edges, bool, of the rows of a block and all rows from its first on: [b, N - start]."""
        cosine = (self._directions[block] @ self._directions[block.start :].T).clamp_(max=1)
        cosine.diagonal().fill_(1)
        edges = cosine >= self._similarity
        return cosine.sub_(1).div_(self._temperature).exp_().masked_fill_(~edges, 0), edges


def budget(device: torch.device) -> int:
    """`MAX_MEMORY` of a device, of other kinds that of a CPU."""
    return MAX_MEMORY.get(device.type, MAX_MEMORY["cpu"])


def directions(features: Tensor) -> Tensor:
    """Features over their norms: float32 [..., N, d]; NaN where the norm is 0, which is similar to nothing."""
    features = features.float()
    return features / features.norm(dim=-1, keepdim=True)


def row_blocks(count: int) -> Iterator[slice]:
    """Rows of a view: so many at a time that products are large, and so few that little of one is computed twice."""
    step = max(128, min(TILE_PAIRS // max(1, count), count // 10))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _keep(weights: Tensor, edges: int, budget: int) -> tuple[_Dense | _Listed | None, int]:
    """What is kept of the weights of a block with so many edges, and the bytes that are left of the budget."""
    dense, listed = weights.nbytes, edges * _LISTED
    if min(dense, listed) > budget:
        return None, budget
    return (_Listed.of(weights), budget - listed) if listed < dense else (_Dense(weights), budget - dense)
