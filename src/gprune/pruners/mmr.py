"""MMR: keep tokens that matter and are unlike those kept before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import Between, setting
from ..graph import initial_scores
from ..kernels.gram import Gram, gram_flops
from ..tokens import View, VisualTokens
from .cdpruner import min_max
from .stepwise import GreedyPruner, features_of


@dataclass
class MMR(GreedyPruner):
    """Keep the tokens of maximal marginal relevance, lambda * I(i) - (1 - lambda) * max_{j in S} cos(i, j).

    Tan et al., "IDPruner: Harmonizing Importance and Diversity in Visual Token Pruning for MLLMs", 2026,
    arXiv 2602.13315, after Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking for Reordering Documents
    and Producing Summaries", SIGIR 1998. S are the tokens kept so far, of which the first is the most important; a
    larger ratio keeps all that a smaller one does.

    The paper trains a scorer for the importance I. Here it is untrained: the L2 norm of a token, the score that G-Prune
    starts from, scaled to [0, 1] over the view, and 1 for all where the norms are equal. A token whose norm is 0 points
    nowhere: its cosine to every other is 0.

    Args:
        keep, scope, positions: see `Pruner`.
        importance: in [0, 1], the paper's lambda; 1 ranks by importance alone, 0 by unlikeness alone.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    importance: float = setting(0.5, Between(0, 1))

    def objective(self, tokens: VisualTokens, views: Sequence[View], k: int) -> MarginalRelevance:
        """The marginal relevance of each token."""
        features = features_of(tokens, views)
        important = min_max(initial_scores(features))
        return MarginalRelevance(Gram(normalize(features.float(), dim=-1)), important, self.importance)

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs."""
        return gram_flops(count, width) if kept else 0


class MarginalRelevance:
    """weight * important - (1 - weight) * the cosine to the nearest chosen one; what is important while none is chosen.

    Args:
        cosine: float32 [B, N, N].
        important: float32 [B, N], in [0, 1].
        weight: in [0, 1].
    """

    def __init__(self, cosine: Gram, important: Tensor, weight: float) -> None:
        self._cosine, self._important, self._weight = cosine, important, weight
        self._closest = torch.tensor(-torch.inf)
        self.gains = important

    def add(self, best: Tensor) -> None:
        """Choose one more of every set: int64 [B, 1]."""
        self._closest = torch.maximum(self._closest, self._cosine.rows(best).squeeze(-2))
        self.gains = self._weight * self._important - (1 - self._weight) * self._closest
