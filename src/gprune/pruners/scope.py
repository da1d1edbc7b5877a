"""SCOPE: keep a set of tokens that covers all, those first that the vision tower attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import Between, setting
from ..kernels.gram import Gram, gram_flops
from ..kernels.greedy import FacilityLocation
from ..tokens import View, VisualTokens
from .base import Need
from .stepwise import GreedyPruner, features_of


@dataclass
class SCOPE(GreedyPruner):
    """Keep the tokens with the largest gain(v) * A_v^alpha, again and again: coverage and saliency.

    "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs", NeurIPS 2025, arXiv 2510.24214.
    With C(u, S) = max_{s in S} cos(u, s), how well the tokens kept cover token u, gain(v) is the sum over all u of
    max(C(u, S), cos(u, v)) - C(u, S), and the saliency A_v the attention that v receives. A larger ratio keeps all that
    a smaller one does.

    The rule leaves open what covers a token while nothing is kept: here C(u, {}) = 0, so that tokens at more than a
    right angle do not cover one another. A token whose norm is 0 points nowhere: its cosine to all is 0, to itself too.
    The attention is as in `ClsAttention`, the features are those that the LLM would receive.

    Args:
        keep, scope, positions: see `Pruner`.
        alpha: in [0, 10], the weight of saliency; 0 is coverage alone.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    alpha: float = setting(0.5, Between(0, 10))

    needs: ClassVar[tuple[Need, ...]] = ("attention",)

    def objective(self, tokens: VisualTokens, views: Sequence[View], k: int) -> SalientCoverage:
        """The product of what each token adds and its saliency."""
        # Of near-copies, what one adds is less than the rounding of float32.
        directions = normalize(features_of(tokens, views).double(), dim=-1)
        attention = torch.stack([tokens.signals["attention"][view.rows] for view in views]).double()
        return SalientCoverage(Gram(directions, lambda products: products.clamp_(0, 1)), attention**self.alpha)

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs, and the first gains; how many rows the steps read depends on the picture."""
        return gram_flops(count, width) + 2 * count**2 if kept else 0


class SalientCoverage(FacilityLocation):
    """What each index adds to how well the chosen ones represent all, times its saliency.

    Args:
        cosine: float64 [B, N, N], in [0, 1].
        saliency: float64 [B, N], not negative.
    """

    def __init__(self, cosine: Gram, saliency: Tensor) -> None:
        super().__init__(cosine, torch.ones_like(saliency))
        self._saliency = saliency

    @property
    def gains(self) -> Tensor:
        """float64 [B, N]."""
        return self.added * self._saliency
