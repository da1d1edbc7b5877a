"""DivPrune: keep the tokens that differ most from one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..kernels.gram import Gram, gram_flops
from ..tokens import View, VisualTokens
from .stepwise import GreedyPruner, features_of


@dataclass
class DivPrune(GreedyPruner):
    """Keep tokens whose smallest cosine distance to one another is large: greedy max-min diversity.

    Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025,
    arXiv 2503.02175. A larger ratio keeps all that a smaller one does.
    """

    def objective(self, tokens: VisualTokens, views: Sequence[View], k: int) -> Farthest:
        """How far each token is from its nearest neighbour at first, and then from the nearest of those kept.

        A token whose norm is 0 points nowhere: its cosine similarity to every other is 0.
        """
        return Farthest(Gram(normalize(features_of(tokens, views).float(), dim=-1)))

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs."""
        return gram_flops(count, width) if kept else 0


class Farthest:
    """How near each of B sets of N vectors is to a chosen one, negated; to any other while none is chosen.

    Args:
        cosine: float32 [B, N, N].
    """

    def __init__(self, cosine: Gram) -> None:
        self._cosine, self._closest = cosine, torch.tensor(-torch.inf)
        self.gains = -cosine.nearest()

    def add(self, best: Tensor) -> None:
        """Choose one more of every set: int64 [B, 1]."""
        self._closest = torch.maximum(self._closest, self._cosine.rows(best).squeeze(-2))
        self.gains = -self._closest
