"""Greedy choice, one index after another, in several sets at once."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .gram import PAIRS, Gram


class Objective(Protocol):
    """What greedy makes large: for each of some sets of N."""

    @property
    def gains(self) -> Tensor:
        """Floating [B, N], how good each index would be next."""

    def add(self, best: Tensor) -> None:
        """Choose one more of every set: int64 [B, 1]."""


def greedy(objective: Objective, k: int) -> Tensor:
    """Again and again the index with the largest gain that was not chosen yet.

    Args:
        objective: finite gains of B sets of N.
        k: at most N.

    Returns:
        int64 [B, k], in the order chosen; ties go to the lower index.
    """
    barred = torch.zeros_like(objective.gains)
    chosen: list[Tensor] = []
    while len(chosen) < k:
        if chosen:
            objective.add(chosen[-1])
        best = (objective.gains + barred).argmax(-1, keepdim=True)
        barred.scatter_(-1, best, -torch.inf)
        chosen.append(best)
    return torch.cat(chosen, -1)


class FacilityLocation:
    """How well chosen indices represent all, sum_i weights[i] max_j similarity[i, j], and what others would add to it.

    What they would add changes only through the rows that are now better represented than before, so a step
    reads these alone. Every term is rounded to a multiple of 2^-52 of a power of two that no sum exceeds: sums and
    differences of terms leave no error in float64, in whatever order they are taken, and equal columns stay equal.

    Args:
        similarity: float64, in [0, 1], of B sets: symmetric [B, N, N], not to be read again by others, or [B, R, N]
            where R others are represented.
        weights: floating [B, N] or [B, R], not negative.
        most: float64 [B, 1], what no sum exceeds; None: the sums of the weights.

    Attributes:
        added: float64 [B, N], what each index would add.
    """

    def __init__(self, similarity: Gram | Tensor, weights: Tensor, most: Tensor | None = None) -> None:
        most = weights.double().sum(-1, keepdim=True) if most is None else most
        sets, self._size = weights.shape
        self._weights = weights.double().ldexp(-most.frexp().exponent).view(-1, 1)
        # Terms have 1 added, since neighbours between 1 and 2 are 2^-52 apart.
        self._covered = torch.ones_like(self._weights)
        self._owners = torch.eye(sets, dtype=torch.float64, device=weights.device).repeat_interleave(self._size, 0)
        self._similarity = similarity
        table = similarity.taken() if isinstance(similarity, Gram) else similarity
        self._table = None if table is None else table.flatten(0, 1).mul_(self._weights).add_(1)
        count = similarity.count if isinstance(similarity, Gram) else similarity.shape[-1]
        self._at_once = max(1, PAIRS // max(1, count))
        self.added = self._weights.new_zeros(sets, count)
        for places in torch.arange(len(self._weights), device=weights.device).split(self._at_once):
            self.added += self._sum(places, self._terms(places).sub_(1))

    @property
    def gains(self) -> Tensor:
        """What greedy compares: `added`."""
        return self.added

    def add(self, best: Tensor) -> None:
        """Choose one more of every set: int64 [B, 1]."""
        offered = self._column(best)
        for places in (offered > self._covered).squeeze(1).nonzero().squeeze(1).split(self._at_once):
            before, after = self._covered.index_select(0, places), offered.index_select(0, places)
            terms = self._terms(places)
            torch.maximum(terms, before, out=terms)
            torch.minimum(terms, after, out=terms)
            self.added -= self._sum(places, terms.sub_(before))
        torch.maximum(self._covered, offered, out=self._covered)

    def _terms(self, places: Tensor) -> Tensor:
        """1 + weights[i] similarity[i, j] of rows int64 [m], counted through all sets: new memory, float64 [m, N]."""
        if self._table is not None:
            return self._table.index_select(0, places)
        assert isinstance(self._similarity, Gram)
        return self._similarity.listed(places).mul_(self._weights.index_select(0, places)).add_(1)

    def _column(self, best: Tensor) -> Tensor:
        """1 + weights[i] similarity[i, best] of every set: new memory, float64 [B N, 1] or [B R, 1]."""
        if self._table is not None:
            return self._table.gather(1, best.repeat_interleave(self._size, 0))
        assert isinstance(self._similarity, Gram)
        return self._similarity.rows(best).view(-1, 1).mul_(self._weights).add_(1)

    def _sum(self, places: Tensor, terms: Tensor) -> Tensor:
        """Of each set the sum of its terms: float64 [B, N]."""
        return self._owners.index_select(0, places).T @ terms
