"""How much of a view some of its tokens cover: what `GraphCover` maximises, and what `cover` is a share of."""

from __future__ import annotations

import torch
from torch import Tensor

from .graph import initial_scores
from .kernels.blocks import directions
from .kernels.gram import PAIRS, Gram

TEMPERATURE = 0.1
"""How fast similarity falls with the angle, where a method does not say otherwise."""

REACHED = 1e-6
"""A share that is missed by less is reached: float32 does not tell a token from its copy more exactly."""


def similarities(features: Tensor, temperature: float = TEMPERATURE) -> Gram:
    """s(i, j) = exp((cosine - 1) / temperature), float64 [N, N], of tokens, floating [N, d]; 0 where one has norm 0."""

    def kernel(cosine: Tensor) -> Tensor:
        # NaN where a token points nowhere.
        return cosine.clamp_(max=1).sub_(1).div_(temperature).exp_().nan_to_num_(0).double()

    return Gram(directions(features), kernel)


def shortest_cover(features: Tensor, order: Tensor, share: float) -> tuple[int, float]:
    """How many tokens of an order it takes to cover a share of all tokens, and the share that they cover.

    A set A covers sum_i |x_i| max_{j in A} s(i, j) of sum_i |x_i|, `similarities` being s at a temperature of 0.1 and
    |x_i| the L2 norm of token i; of tokens that all have norm 0 every set covers all.

    Args:
        features: floating [N, d], all tokens.
        order: int64 [k], k >= 1, distinct rows of them.
        share: in [0, 1].

    Returns:
        The number, at least 1 and at most k, and what so many cover, in [0, 1]; less than `share` where k are too few.
    """
    with torch.autocast(features.device.type, enabled=False):
        weights = initial_scores(features).double()
        total = weights.sum()
        if total == 0:
            return 1, 1.0
        similarity, nearest, count = similarities(features), torch.zeros_like(weights), 0
        for part in order.split(max(1, PAIRS // len(features))):
            rows = similarity.rows(part)
            rows[0] = torch.maximum(rows[0], nearest)
            rows = rows.cummax(0).values
            nearest, shares = rows[-1], rows @ weights / total
            reached = (shares >= share - REACHED).nonzero()
            if len(reached):
                first = int(reached[0])
                return count + first + 1, min(1.0, float(shares[first]))
            count += len(part)
        return count, min(1.0, float(shares[-1]))
