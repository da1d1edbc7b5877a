"""G-Prune as pure tensor functions: the graph of an image's tokens, the flow over it, the ranking score.

Source of every equation: Jiang et al., "What Kind of Visual Tokens Do We Need? Training-free Visual Token
Pruning for Multi-modal Large Language Models from the Perspective of Graph", AAAI 2025, arXiv 2501.02268.

All functions work on batches of equal size, [B, N, ...], and compute in float32 whatever the input's dtype
and whether autocast is on.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Init = Literal["norm", "ones"]


class Graph(NamedTuple):
    """Edges between the tokens of a view.

    Args:
        weights: float32 [B, N, N], exp((cosine - 1) / temperature) on edges and 0 elsewhere; symmetric.
            Each row over its sum is a row of the paper's A', the softmax of cosine / temperature over edges.
        degrees: int64 [B, N], the number of edges of each token, itself included; the paper's D (Eq. 4).
    """

    weights: Tensor
    degrees: Tensor


def cosine_graph(features: Tensor, similarity: float = 0.5, temperature: float = 0.03) -> Graph:
    """Join the tokens whose cosine similarity is at least `similarity`, and every token with itself (Eq. 1).

    A token whose norm is 0 points nowhere: it has no edge but its own.

    Args:
        features: floating [B, N, d], finite.
        similarity: cosine threshold in [-1, 1]; the paper's s.
        temperature: softmax temperature > 0. The paper does not name it; its released code uses 0.03.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        # A zero token becomes 0 / 0 = NaN here, and NaN >= similarity is false at every threshold.
        directions = features / features.norm(dim=-1, keepdim=True)
        cosine = (directions @ directions.mT).clamp_(max=1)
        cosine.diagonal(dim1=-2, dim2=-1).fill_(1)
        edges = cosine >= similarity
        weights = cosine.sub_(1).div_(temperature).exp_().masked_fill_(~edges, 0)
        return Graph(weights, edges.sum(-1))


def initial_scores(features: Tensor, init: Init = "norm") -> Tensor:
    """S(0), float32 [B, N]: the L2 norm of every token (Eq. 2), or ones (the paper's Table 2, graph only)."""
    if init == "ones":
        return torch.ones(features.shape[:-1], device=features.device)
    return features.float().norm(dim=-1)


def propagate(scores: Tensor, weights: Tensor, iterations: int = 5) -> Tensor:
    """S(t) = S(0) A'^t (Eq. 3), as t products S <- (S / row sums) E with the symmetric weights E.

    Args:
        scores: S(0), float32 [B, N].
        weights: E, float32 [B, N, N], of `cosine_graph`.
        iterations: the paper's t >= 0; 0 returns S(0).
    """
    with torch.autocast(scores.device.type, enabled=False):
        totals = weights.sum(-1)
        for _ in range(iterations):
            scores = ((scores / totals).unsqueeze(-2) @ weights).squeeze(-2)
        return scores


def representativeness(
    features: Tensor,
    similarity: float = 0.5,
    iterations: int = 5,
    temperature: float = 0.03,
    init: Init = "norm",
) -> tuple[Tensor, Tensor]:
    """The score that ranks tokens, S' = S(t) / D (Eq. 5): what flowed to a token, shared by its neighbours.

    Args:
        features: floating [B, N, d], finite; B views of N tokens each, which exchange nothing.
        similarity, temperature: see `cosine_graph`.
        iterations: see `propagate`; 0 gives S(0) / D.
        init: see `initial_scores`.

    Returns:
        Scores, float32 [B, N], and degrees, int64 [B, N].
    """
    graph = cosine_graph(features, similarity, temperature)
    scores = propagate(initial_scores(features, init), graph.weights, iterations)
    return scores / graph.degrees, graph.degrees
