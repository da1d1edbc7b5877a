"""Uniform pruning: a regular sub-grid of the picture, whatever it shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokens import View, VisualTokens
from .base import SetPruner


@dataclass
class Uniform(SetPruner):
    """Keep tokens evenly spaced over the view: over the rows of its grid, then over the columns of each row.

    Of an R x C grid, k = R C / m^2 is every m-th token of every m-th row. A view without a grid is one row.
    """

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """The k evenly spaced rows of `view`: int64 [k], ascending."""
        height, width = view.grid or (1, len(view))
        lines = min(max(round(math.sqrt(k * height / width)), math.ceil(k / width)), height, k)
        places = [
            row * width + column
            for row, share in zip(spread(height, lines), _shares(k, lines), strict=True)
            for column in spread(width, share)
        ]
        return view.rows[torch.tensor(places, device=view.rows.device)]


def spread(n: int, k: int) -> list[int]:
    """The middles of k equal parts of range(n), k <= n: all different."""
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]


def _shares(k: int, parts: int) -> list[int]:
    """k split into parts that differ by at most one, the larger ones evenly spaced."""
    return [(i + 1) * k // parts - i * k // parts for i in range(parts)]
