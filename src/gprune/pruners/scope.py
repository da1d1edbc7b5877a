"""SCOPE: keep a set of tokens that covers all, those first that the vision tower attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import Between, setting
from ..kernels.gram import Gram, gram_flops
from ..tokens import View, VisualTokens
from .base import Need, SetPruner
from .graphcover import greedy_cover


@dataclass
class SCOPE(SetPruner):
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
    ordered: ClassVar[bool] = True

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """Again and again the token with the largest product; ties go to the lower index.

        Returns:
            k rows of `view`, int64 [k], in the order chosen.
        """
        saliency = tokens.signals["attention"][view.rows].double() ** self.alpha
        # Of near-copies, what one adds is less than the rounding of float32.
        cosine = Gram(normalize(tokens.features[view.rows].double(), dim=-1), lambda products: products.clamp_(0, 1))
        return view.rows[greedy_cover(cosine, torch.ones_like(saliency), k, saliency)]

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs, and the first gains; how many rows the steps read depends on the picture."""
        return gram_flops(count, width) + 2 * count**2 if kept else 0
