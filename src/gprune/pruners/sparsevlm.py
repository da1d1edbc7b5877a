"""SparseVLM: keep the visual tokens that the relevant words of the text look at, and recycle some of the others."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import Between, setting
from .bat import cosine_distance, nearest_peaks
from .decoder import DecoderMerger, InsideTokens, powers

_STAGES = (2 / 32, 6 / 32, 15 / 32)
"""After which share of the layers tokens are dropped: the paper's layers 2, 6 and 15 of 32."""


@dataclass
class SparseVLM(DecoderMerger):
    """Three times keep what the raters among the text attend to, and sum some of what goes in a few clusters.

    Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025,
    arXiv 2410.04417. Raters are the tokens of the text whose mean over all visual tokens of softmax(Hv Hq^T), over the
    text, exceeds the mean, where Hv and Hq are the embeddings that the LLM is given. A visual token's score is the
    attention that the raters pay it in the layer before, averaged over them and the heads. Of those removed, the share
    `recycled` with the highest scores falls into clusters by density peaks, one for every 1 / `clusters` of them, and
    the sum of a cluster takes the place of its peak.

    In the paper the rank of the attention tells how many tokens a layer loses; where it compares methods at one
    average, the numbers are fixed by hand. Here they follow from `keep`: the same share of those before at each of its
    layers, or those as deep, as in `PyramidDrop`. Of n tokens k are left, ceil(recycled * clusters * (n - k)) of them
    sums, at most half. Had to be decided: only text that sees the image rates it, which comes after it; all of that
    does where no token exceeds the mean, and without any the prompt's last token, as in `FastV`; distance is one minus
    cosine, which needs no scale; and clusters are summed, as the paper is said to do, where its code takes means.

    Args:
        keep, match: see `DecoderPruner`.
        recycled: share of the removed tokens that is recycled, in [0, 1]; the paper's tau.
        clusters: clusters for each token recycled, in [0, 1]; the paper's theta. The values are those of its code.
    """

    recycled: float = setting(0.3, Between(0, 1))
    clusters: float = setting(0.1, Between(0, 1))

    reads: ClassVar[bool] = True
    sums: ClassVar[bool] = True

    def profile(self, layers: int, share: float) -> list[float]:
        """Powers of the share: 1 up to the first of the three layers, then share, share^2, share^3."""
        return powers(_STAGES, layers, share)

    def stands(self, tokens: InsideTokens, k: int) -> Tensor:
        """The k that stand are those with the highest scores, and the peaks; ties go to the lower index."""
        order = tokens.attention_of(raters(tokens)).sort(descending=True, stable=True).indices
        peaks = min(ceil(self.recycled * self.clusters * (len(order) - k) - 1e-6), k // 2)
        kept, removed = order[: k - peaks], order[k - peaks :]
        stands = torch.full_like(order, -1)
        stands[kept] = kept
        if peaks:
            again = removed[: max(peaks, int(self.recycled * len(removed) + 1e-6))].sort().values
            stands[again] = again[nearest_peaks(cosine_distance(tokens.states[again]), peaks)]
        return stands


def raters(tokens: InsideTokens) -> Tensor:
    """bool [m], which tokens of the text rate the image."""
    readers = tokens.readers
    raters = torch.zeros_like(readers)
    products = tokens.embeddings.double() @ tokens.text_embeddings[readers].double().T
    relevance = products.softmax(-1).mean(0)
    raters[readers] = relevance > relevance.mean()
    return raters if raters.any() else readers
