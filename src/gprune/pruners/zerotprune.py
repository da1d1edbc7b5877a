"""ZeroTPrune: rank tokens by PageRank on the attention graph, then drop those that have a like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..kernels.gram import gram, gram_flops
from ..tokens import View, VisualTokens
from .base import Need, SetPruner

POWER_STEPS = 50
"""Steps of the power iteration: as many as the paper takes where it converges slowest."""


@dataclass
class ZeroTPrune(SetPruner):
    """Drop first the tokens that matter least to the others, then those that are most alike to one that matters more.

    Wang, Dedhia and Jha, "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in
    Pre-Trained Transformers", CVPR 2024, arXiv 2305.17328. Importance is the weighted PageRank s <- A^T s, from equal
    scores, where row i of A is what token i attends to. The least important are dropped. What is left is divided in
    two, every second one by importance, and each of the less important half is compared with the nearest of the other:
    those with the most alike are dropped.

    The paper does so in many layers of the vision tower, on the attention of every head. Here it is done once, and for
    want of that attention A is the softmax of the products of the keys of one layer, averaged over heads, over the
    root of their width: the layer that `ClsAttention` reads. Likeness is the cosine of the keys, as in the paper.
    Half of the tokens that go are dropped for importance and half for likeness, of which at most as many as are kept.
    """

    needs: ClassVar[tuple[Need, ...]] = ("keys",)

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """The k rows of `view` that are left: int64 [k], the most important first; ties go to the lower index."""
        keys = tokens.signals["keys"][view.rows].double()
        alike = min((len(keys) - k) // 2, k)
        importance = pagerank((gram(keys) / math.sqrt(keys.shape[1])).softmax(-1))
        order = importance.sort(descending=True, stable=True).indices[: k + alike]
        directions = normalize(keys[order], dim=-1)
        likeness = (directions[1::2] @ directions[::2].T).amax(-1)
        dropped = 1 + 2 * likeness.sort(descending=True, stable=True).indices[:alike]
        stays = torch.ones_like(order, dtype=torch.bool)
        stays[dropped] = False
        return view.rows[order[stays]]

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs of keys, the steps of PageRank, and the likeness of those that are left."""
        left = kept + min((count - kept) // 2, kept)
        steps, likeness = 2 * POWER_STEPS * count**2, 2 * key_width * (left // 2) * (left - left // 2)
        return gram_flops(count, key_width) + steps + likeness if kept else 0


def pagerank(attention: Tensor) -> Tensor:
    """The importance of each token: [n], sum 1, from attention [n, n] whose rows have sum 1."""
    scores = attention.new_full((len(attention),), 1 / len(attention))
    for _ in range(POWER_STEPS):
        scores = scores @ attention
    return scores
