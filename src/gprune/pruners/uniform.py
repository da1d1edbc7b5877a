"""Uniform pruning: tokens that lie evenly over the picture, whatever it shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokens import View, VisualTokens
from .base import SetPruner


@dataclass
class Uniform(SetPruner):
    """Keep tokens evenly spaced over the view, whatever they are.

    On a grid, the k cells are kept whose r sqrt(2) + c sqrt(3) have the smallest fractional parts, row r and column c
    counted from the middle: a low-discrepancy set, as the points of Richtmyer ("The evaluation of definite integrals,
    and a quasi-Monte-Carlo method based on the properties of algebraic numbers", 1951). Every row, column and rectangle
    holds its share but for a few cells, and stripes do not fall into step with it as they do with every m-th row.
    A larger budget keeps all that a smaller one does.

    A view without a grid keeps the middles of k equal parts of its tokens.
    """

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """The k evenly spaced rows of `view`: int64 [k]."""
        if view.grid is None:
            return view.rows[spread(len(view), k)]
        rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in view.grid)
        phases = (rows[:, None] * math.sqrt(2) + columns * math.sqrt(3)) % 1
        return view.rows[phases.flatten().argsort(stable=True)[:k].to(view.rows.device)]


def spread(n: int, k: int) -> list[int]:
    """The middles of k equal parts of range(n), k <= n: all different."""
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]
