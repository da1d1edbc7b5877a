"""GraphCover: keep a set of tokens in which every token has a near representative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..checks import Above, setting
from ..coverage import TEMPERATURE, similarities
from ..graph import initial_scores
from ..kernels.gram import gram_flops
from ..kernels.greedy import FacilityLocation
from ..tokens import View, VisualTokens
from .stepwise import GreedyPruner, features_of


@dataclass
class GraphCover(GreedyPruner):
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

    def objective(self, tokens: VisualTokens, views: Sequence[View], k: int) -> FacilityLocation:
        """By how much each token would raise f."""
        features = features_of(tokens, views)
        return FacilityLocation(similarities(features, self.temperature), initial_scores(features))

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs, and the first gains; how many rows the steps read depends on the picture."""
        return gram_flops(count, width) + 2 * count**2 if kept else 0
