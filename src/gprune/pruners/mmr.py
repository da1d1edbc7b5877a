"""MMR: keep tokens that matter and are unlike those kept before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import Between, setting
from ..graph import initial_scores
from ..kernels.gram import Gram, gram_flops
from ..tokens import View, VisualTokens
from .base import SetPruner
from .cdpruner import min_max


@dataclass
class MMR(SetPruner):
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

    ordered: ClassVar[bool] = True

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """Again and again the token with the largest marginal relevance; ties go to the lower index.

        Returns:
            k rows of `view`, int64 [k], in the order chosen.
        """
        features = tokens.features[view.rows]
        with torch.autocast(features.device.type, enabled=False):
            cosine = Gram(normalize(features.float(), dim=-1))
            return view.rows[self._order(cosine, min_max(initial_scores(features)), k)]

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs."""
        return gram_flops(count, width) if kept else 0

    def _order(self, cosine: Gram, important: Tensor, k: int) -> Tensor:
        """int64 [k], in the order chosen."""
        best = important.argmax(-1, keepdim=True)
        closest = torch.full_like(important, -torch.inf)
        taken = torch.zeros_like(important, dtype=torch.bool)
        chosen = [best]
        while len(chosen) < k:
            taken[best] = True
            closest = torch.maximum(closest, cosine.rows(best)[0])
            relevance = self.importance * important - (1 - self.importance) * closest
            best = relevance.masked_fill(taken, -torch.inf).argmax(-1, keepdim=True)
            chosen.append(best)
        return torch.cat(chosen)
