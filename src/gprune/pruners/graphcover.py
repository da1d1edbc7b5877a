"""GraphCover: keep a set of tokens in which every token has a near representative."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import cosine_graph, initial_scores
from ..tokens import View, VisualTokens
from .base import SetPruner


@dataclass
class GraphCover(SetPruner):
    """Keep tokens A that together represent all: greedy for the largest f(A) = sum_i |x_i| max_{j in A} s(i, j).

    Both terms are G-Prune's: s(i, j) = exp((cosine - 1) / temperature) is the weight of an edge of its graph, without
    the threshold, and the L2 norm |x_i| of a token is the score it starts from (its Eq. 1 and 2). But
    where G-Prune ranks tokens one by one, so that near-copies of one region rank alike and are kept together, here
    a token counts for what it adds to those kept before: a second copy adds nothing.

    f is monotone and submodular, so greedy reaches at least 1 - 1/e of the largest f of any k tokens (Nemhauser,
    Wolsey and Fisher, "An analysis of approximations for maximizing submodular set functions", 1978). A larger
    ratio keeps all that a smaller one does.

    Args:
        keep, scope, positions: see `Pruner`.
        temperature: > 0; how fast similarity falls with the angle. Small, every token represents only its
            copies; large, one token represents a whole region.

    Raises:
        TypeError, ValueError: an argument is not one of the values above.
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        accepted = "accepted is a finite number > 0; leave it out for 0.1"
        if isinstance(self.temperature, bool) or not isinstance(self.temperature, (int, float)):
            raise TypeError(f"temperature={self.temperature!r} is a {type(self.temperature).__name__}; {accepted}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature}; {accepted}")

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """Again and again the token that raises f most; ties go to the lower index.

        Returns:
            k rows of `view`, int64 [k], in the order chosen.
        """
        features = tokens.features[view.rows]
        similarity = cosine_graph(features[None], -1, self.temperature).weights[0]
        return view.rows[greedy_cover(similarity, initial_scores(features), k)]


def greedy_cover(similarity: Tensor, weights: Tensor, k: int) -> Tensor:
    """Greedy facility location: every index is the one that most raises sum_i weights[i] max_j similarity[i, j].

    What the others would add changes only through the rows that are now better represented than before, so a step
    reads these alone. Gains are kept in float64, where the changes leave no error that could reorder them.

    Args:
        similarity: floating [N, N], symmetric, not negative.
        weights: floating [N], not negative.
        k: at most N.

    Returns:
        int64 [k], in the order chosen; ties go to the lower index.
    """
    similarity, weights = similarity.double(), weights.double()
    covered = torch.zeros_like(weights)
    gains = weights @ similarity
    chosen = []
    for _ in range(k):
        best = gains.argmax(-1, keepdim=True)
        chosen.append(best)
        offered = similarity.index_select(0, best)[0]
        better = (offered > covered).nonzero().squeeze(1)
        before, after = covered[better, None], offered[better, None]
        gains -= weights[better] @ similarity[better].clamp_(before, after).sub_(before)
        gains[best] = -torch.inf
        covered = torch.maximum(covered, offered)
    return torch.cat(chosen)
