"""Pruning by L2 norm: the graph-free half of G-Prune."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..tokens import VisualTokens
from .base import ScorePruner


@dataclass
class L2Norm(ScorePruner):
    """Keep the tokens with the largest L2 norm (baseline of the paper's Fig. 4 and Table 2)."""

    def score(self, tokens: VisualTokens) -> Tensor:
        """L2 norm of every token: float32 [N]."""
        return tokens.features.float().norm(dim=-1)
