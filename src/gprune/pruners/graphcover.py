"""GraphCover: keep a set of tokens in which every token has a near representative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import Above, setting
from ..coverage import TEMPERATURE, similarities
from ..graph import initial_scores
from ..kernels.gram import Gram, gram_flops
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
        BadType, BadValue: an argument is not one of the values above.
    """

    temperature: float = setting(TEMPERATURE, Above(0))

    ordered: ClassVar[bool] = True

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """Again and again the token that raises f most; ties go to the lower index.

        Returns:
            k rows of `view`, int64 [k], in the order chosen.
        """
        features = tokens.features[view.rows]
        with torch.autocast(features.device.type, enabled=False):
            similarity = similarities(features, self.temperature)
            return view.rows[greedy_cover(similarity, initial_scores(features), k)]

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs, and the first gains; how many rows the steps read depends on the picture."""
        return gram_flops(count, width) + 2 * count**2 if kept else 0


def greedy_cover(similarity: Gram, weights: Tensor, k: int, favour: Tensor | None = None) -> Tensor:
    """Greedy facility location: every index is the one that most raises sum_i weights[i] max_j similarity[i, j].

    Args:
        similarity: float64 [N, N], symmetric, not negative.
        weights: floating [N], not negative.
        k: at most N.
        favour: floating [N], not negative, by which what each index adds is multiplied before they are compared;
            None: all alike.

    Returns:
        int64 [k], in the order chosen; ties go to the lower index.
    """
    coverage = FacilityLocation(similarity, weights)
    taken = torch.zeros_like(weights, dtype=torch.bool)
    chosen = []
    for _ in range(k):
        gains = coverage.gains if favour is None else coverage.gains * favour
        best = gains.masked_fill(taken, -torch.inf).argmax(-1, keepdim=True)
        chosen.append(best)
        taken[best] = True
        coverage.add(best)
    return torch.cat(chosen)


class FacilityLocation:
    """How well chosen indices represent all, sum_i weights[i] max_j similarity[i, j], and what others would add to it.

    What they would add changes only through the rows that are now better represented than before, so a step
    reads these alone. Gains are kept in float64, where the changes leave no error that could reorder them.

    Args:
        similarity: float64 [N, N], symmetric, not negative.
        weights: floating [N], not negative.
    """

    def __init__(self, similarity: Gram, weights: Tensor) -> None:
        self._similarity, self._weights = similarity, weights.double()
        self._covered = torch.zeros_like(self._weights)
        self.gains = torch.zeros_like(self._weights)
        """float64 [N], what each index would add."""
        for part, rows in similarity.parts():
            self.gains += self._weights[part] @ rows

    def add(self, index: Tensor) -> None:
        """Choose one more: int64 [1]."""
        offered = self._similarity.rows(index)[0]
        for part, rows in self._similarity.parts((offered > self._covered).nonzero().squeeze(1)):
            before, after = self._covered[part, None], offered[part, None]
            self.gains -= self._weights[part] @ rows.clamp_(before, after).sub_(before)
        self._covered = torch.maximum(self._covered, offered)
