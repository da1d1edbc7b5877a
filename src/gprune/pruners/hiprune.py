"""HiPrune: keep what a middle layer of the vision tower attends to and what lies around it, then what the last does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import Between, setting
from ..tokens import View, VisualTokens
from .base import Need, SetPruner


@dataclass
class HiPrune(SetPruner):
    """Keep anchors by the attention of a middle layer, their four neighbours as buffers, and registers by the last.

    Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
    2025, arXiv 2508.00553. Of k tokens floor(alpha k) are anchors: those with the most attention in the middle layer,
    which looks at objects. Buffers are the tokens above, below, left and right of them. What is left of the k are
    registers: those with the most attention in the last layer, which gathers what the picture is about.

    The attention of the last layer is as in `ClsAttention`, from the class token where there is one, and of the middle
    layer alike. The paper names layer and alpha for each tower; had to be decided for all: a layer at three eighths of
    the tower's depth, 9 of 24, in towers with windows the nearest without, and alpha 0.1. Where anchors and buffers are
    more than k, buffers go, those with the least attention in the middle layer first. In a view without a
    grid the neighbours are the tokens before and after.

    Args:
        keep, scope, positions: see `Pruner`.
        alpha: in [0, 1], the share of the tokens kept that are anchors.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    alpha: float = setting(0.1, Between(0, 1))

    needs: ClassVar[tuple[Need, ...]] = ("attention", "middle attention")

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """Anchors, buffers and registers, as far as k goes; ties go to the lower index.

        Returns:
            k rows of `view`, int64 [k], in this order.
        """
        middle, last = (tokens.signals[name][view.rows].float() for name in ("middle attention", "attention"))
        anchors = torch.zeros_like(middle, dtype=torch.bool)
        anchors[middle.sort(descending=True, stable=True).indices[: int(self.alpha * k + 1e-6)]] = True
        kind = torch.where(anchors, 2, neighbours(anchors.view(view.grid or (1, -1))).flatten().long())
        order = torch.where(kind > 0, middle, last).sort(descending=True, stable=True).indices
        return view.rows[order[kind[order].sort(descending=True, stable=True).indices[:k]]]


def neighbours(cells: Tensor) -> Tensor:
    """Those above, below, left and right of the cells of a grid: bool [rows, columns], of the same."""
    near = torch.zeros_like(cells)
    near[1:] |= cells[:-1]
    near[:-1] |= cells[1:]
    near[:, 1:] |= cells[:, :-1]
    near[:, :-1] |= cells[:, 1:]
    return near
