"""BAT: keep the tokens the vision tower attends to, match those that are alike, cluster the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import Between, setting
from ..kernels.gram import gram, gram_flops
from ..tokens import VisualTokens
from .base import Need, Pruner, Selection

DENSITY_NEIGHBOURS = 5
"""Tokens whose distance tells how dense the place of a token is."""


@dataclass
class BAT(Pruner):
    """Keep attentive tokens, the most alike of them matched, and clusters of the inattentive: importance and diversity.

    Long et al., "Beyond Attentive Tokens: Incorporating Token Importance and Diversity for Efficient Vision
    Transformers", CVPR 2023, arXiv 2211.11315. Of k tokens, floor(clusters * k) stand for the inattentive ones:
    the peaks of density, each the mean of the tokens nearest to it. The rest are attentive: floor(matched * rest) more
    are taken than stay, and as many of every second one, by attention, are merged into the nearest of the others.
    Means are weighted by attention, and stand at the place of the peak, or of the more attentive of two.

    The paper does so in three layers of the vision tower, after training it so. Here it is done once, with the tokens
    as the LLM would receive them, and distance is one minus cosine, which needs no scale; attention is as in
    `ClsAttention`.

    Args:
        keep, scope, positions: see `Pruner`.
        clusters: share of the tokens kept that stand for inattentive ones, in [0, 1].
        matched: share of the attentive tokens that get another one merged into them, in [0, 1].

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    clusters: float = setting(0.25, Between(0, 1))
    matched: float = setting(0.1, Between(0, 1))

    needs: ClassVar[tuple[Need, ...]] = ("attention",)
    merges = True

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        attention = tokens.signals["attention"].float()
        kept, merged = tokens.fixed, tokens.features.clone()
        for view, k in zip(tokens.views, counts, strict=True):
            if k == 0:
                continue
            features, weights = tokens.features[view.rows], attention[view.rows]
            stands = self._stands(features, weights, k)
            kept[view.rows[stands.unique()[-k:]]] = True
            member = stands == torch.arange(len(stands), device=stands.device)[:, None]
            merged[view.rows] = weighted_means(features, weights, member, features)
        rows = kept.nonzero().squeeze(1)
        return Selection(rows, attention.masked_fill(tokens.fixed, torch.nan), features=merged[rows])

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs, and the means."""
        return gram_flops(count, width) + 2 * count**2 * width if kept else 0

    def _stands(self, features: Tensor, attention: Tensor, k: int) -> Tensor:
        """int64 [n], which of the k tokens that are kept of a view stands for each of its n; -1 for those dropped."""
        count = len(features)
        clusters = int(self.clusters * k + 1e-6)
        pairs = min(int(self.matched * (k - clusters) + 1e-6), (k - clusters), count - k)
        distance = cosine_distance(features)
        order = attention.sort(descending=True, stable=True).indices
        attentive, others = order[: k - clusters + pairs], order[k - clusters + pairs :].sort().values

        stands = torch.full_like(order, -1)
        stands[attentive] = attentive
        first, second = attentive[::2], attentive[1::2]
        near = distance[second][:, first].min(-1) if pairs else None
        if near is not None:
            matched = near.values.sort(stable=True).indices[:pairs]
            stands[second[matched]] = first[near.indices[matched]]
        if clusters:
            stands[others] = others[nearest_peaks(distance[others][:, others], clusters)]
        return stands


def cosine_distance(features: Tensor) -> Tensor:
    """float64 [n, n], so that near copies have an order: one minus cosine, at least 0, of features [n, d]."""
    directions = normalize(features.double(), dim=-1)
    return (1 - gram(directions)).clamp_(min=0)


def density_peaks(distance: Tensor, count: int, neighbours: int = DENSITY_NEIGHBOURS) -> Tensor:
    """The tokens that are dense and far from any denser: int64 [count], ascending; ties go to the lower index.

    Du et al., "Study on density peaks clustering based on k-nearest neighbors and principal component analysis",
    2016: the density of a token is exp of minus the mean squared distance to its nearest neighbours, and its rank
    the density times the distance to the nearest denser token; the densest counts as farthest from it.

    Args:
        distance: float64 [n, n], n >= count.
        count: how many.
        neighbours: of each, itself not counted.
    """
    near = distance.topk(min(neighbours + 1, len(distance)), largest=False).values[:, 1:]
    thin = near.square().sum(-1) / max(near.shape[1], 1)
    index = torch.arange(len(distance), device=distance.device)
    denser = (thin < thin[:, None]) | ((thin == thin[:, None]) & (index < index[:, None]))
    far = distance.masked_fill(~denser, torch.inf).amin(-1)
    rank = (-thin).exp() * far.where(far.isfinite(), distance.amax(-1))
    return rank.sort(descending=True, stable=True).indices[:count].sort().values


def nearest_peaks(distance: Tensor, count: int) -> Tensor:
    """Of each token the nearest of `density_peaks`, a peak's itself: int64 [n]; ties go to the lower index."""
    peaks = density_peaks(distance, count)
    nearest = distance[:, peaks].argmin(-1)
    nearest[peaks] = torch.arange(count, device=peaks.device)
    return peaks[nearest]


def weighted_means(features: Tensor, weights: Tensor, member: Tensor, alone: Tensor) -> Tensor:
    """What each of m groups becomes: the mean of its members among the features [n, d], weighted; [m, d].

    Args:
        features: floating [n, d].
        weights: float32 [n], not negative; members that weigh nothing weigh alike if all of theirs do.
        member: bool [m, n].
        alone: floating [m, d], what a group of one member or none becomes.
    """
    share = member * weights.clamp(min=torch.finfo(torch.float32).tiny)
    with torch.autocast(features.device.type, enabled=False):
        share = share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        means = (share @ features.float()).to(features.dtype)
    return torch.where(member.sum(-1, keepdim=True) > 1, means, alone)
