"""GraphVote: the tokens of a view elect those that stand for them, in proportion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import Above, setting
from ..graph import initial_scores
from ..kernels.blocks import budget
from ..kernels.gram import Gram, gram_flops
from ..tokens import View, VisualTokens
from .stepwise import StepwisePruner, features_of

WIDEST, NARROWEST = 0.1, 1e-4
"""Temperatures of a circle: at most that of `GraphCover`, at least what float32 tells apart."""

_RECOUNTED = 32
"""Gains that are counted anew at once."""


@dataclass
class GraphVote(StepwisePruner):
    """Elect the tokens that stand for all, in proportion: every token votes for those alike, ever less for the next.

    Token i gives token j the vote S_ij = exp((cosine_ij - 1) / T_i), the weight of an edge of G-Prune's graph without
    its threshold, at a temperature of its own: the T_i at which all its votes add up to `circle`. So the tokens of a
    dense region tell one another apart, and those of a sparse one see as many. T_i is at most 0.1, where further tokens
    are not alike, and at least 0.0001, where float32 tells no more. Again and again the token is kept that has the
    largest

        sum_i |x_i| S_ij / (1 + discount c_i),

    c_i being how far i is represented: the sum of its votes for those kept before. A larger ratio keeps all that a
    smaller one does.

    What is known of it is known of votes that are 0 or 1. Of them it is the sequential method of Thiele ("Om
    Flerfoldsvalg", 1895), greedy for the satisfaction sum_i |x_i| (1 + 1 / (1 + discount) + ... + 1 / (1 + (c_i - 1)
    discount)). That is monotone and submodular, so greedy reaches at least 1 - 1/e of the most that any k tokens give
    (Nemhauser, Wolsey and Fisher, 1978). Groups of copies share the seats by the divisor method with divisors
    s + 1 / discount, s the seats that a group has (Balinski and Young, "Fair Representation", 1982): discount=1 is
    D'Hondt's, 2 is Sainte-Lague's, and a large one nears Adams's, which gives each group a seat before any has two, and
    none more than its share rounded up.

    What is not: with discount=1 and equal norms, the set of the *largest* satisfaction has proportional justified
    representation (Aziz et al., "Justified representation in approval-based committee voting", 2017; Sanchez-Fernandez
    et al., "Proportional justified representation", 2017), but the sequential method can miss even justified
    representation where groups overlap. Of votes between 0 and 1 a gain is the slope of a satisfaction and not its
    rise, for which no bound is claimed.

    Args:
        keep, scope, positions: see `Pruner`.
        circle: > 1; what the votes of a token add up to, its own vote of 1 included.
        discount: > 0; how fast a vote loses weight with every representative.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    circle: float = setting(4.0, Above(1))
    discount: float = setting(1000.0, Above(0))

    def at_once(self, device: torch.device, size: int, width: int) -> int:
        """As many as memory holds: of every view the pairs, as `Gram` counts them, and three copies in float32."""
        return budget(device) // (size * (8 * size + 12 * width))

    def in_order(self, tokens: VisualTokens, views: Sequence[View], k: int) -> Tensor:
        """By the votes."""
        features = features_of(tokens, views)
        votes = votes_of(normalize(features.float(), dim=-1), self.circle)
        return elected(votes, initial_scores(features), k, self.discount)

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs."""
        return gram_flops(count, width) if kept else 0


def votes_of(directions: Tensor, circle: float) -> Gram:
    """Row j has the votes for j, exp((cosine - 1) / T_i) of every i: floating [B, N, N].

    Args:
        directions: floating [B, N, d], of norm 1 or 0.
        circle: see `GraphVote`.
    """
    votes = Gram(directions)
    votes.map_(lambda cosine: cosine.clamp_(max=1).sub_(1))
    sharpness = torch.cat([sharpness_of(rows, circle) for _, rows in votes.parts()], -1).unsqueeze(-2)
    votes.map_(lambda nearness: nearness.mul_(sharpness).exp_())
    return votes


def sharpness_of(nearness: Tensor, circle: float) -> Tensor:
    """1 / T, floating [...], at which the sum of exp(nearness / T) is `circle`, for T from `NARROWEST` to `WIDEST`.

    The logarithm of the sum is convex in 1 / T and falls, so that Newton's steps from the left never pass the root.

    Args:
        nearness: cosines less 1, floating [..., N].
        circle: > 1.
    """
    sharpness = torch.full_like(nearness[..., 0], 1 / WIDEST)
    while True:
        votes = (nearness * sharpness.unsqueeze(-1)).exp_()
        count = votes.sum(-1)
        slope = votes.mul_(nearness).sum(-1) / count
        before = sharpness
        sharpness = before - (count.log() - math.log(circle)) / slope.clamp(max=-1e-12)
        sharpness = sharpness.clamp_(1 / WIDEST, 1 / NARROWEST)
        if (sharpness - before <= 1e-4 * before).all():
            return sharpness


def elected(votes: Gram, weights: Tensor, k: int, discount: float) -> Tensor:
    """Again and again the index whose votes gain most: sum_i votes[i] weights[i] / (1 + discount * represented[i]).

    A gain only falls as others are chosen, so that one counted earlier is a bound: in a step the largest bounds are
    counted anew until the largest of all is one of them (Minoux, "Accelerated greedy algorithms for maximizing
    submodular set functions", 1978).

    Args:
        votes: floating [B, N, N], not negative: in row j those for j.
        weights: floating [B, N], not negative.
        k: at most N.
        discount: > 0.

    Returns:
        int64 [B, k], in the order chosen; ties go to the lower index.
    """

    def gain(rows: Tensor) -> Tensor:
        return rows.mul_(claims).sum(-1, dtype=torch.float64).float()

    represented = torch.zeros_like(weights, dtype=torch.float64)
    claims = weights.unsqueeze(-2)
    gains = torch.cat([gain(rows) for _, rows in votes.parts()], -1)
    chosen = []
    for _ in range(k):
        bounds = gains.clone()
        while True:
            largest, asked = bounds.topk(min(_RECOUNTED, bounds.shape[-1]))
            # What was counted in this step, or chosen, has no bound.
            known = largest.isneginf()
            gains.scatter_(-1, asked, torch.where(known, gains.gather(-1, asked), gain(votes.rows(asked))))
            bounds.scatter_(-1, asked, -torch.inf)
            best = gains.argmax(-1, keepdim=True)
            if bounds.gather(-1, best).isneginf().all():
                break
        chosen.append(best)
        gains.scatter_(-1, best, -torch.inf)
        represented += votes.rows(best).squeeze(-2)
        claims = (weights / (1 + discount * represented)).float().unsqueeze(-2)
    return torch.cat(chosen, -1)
