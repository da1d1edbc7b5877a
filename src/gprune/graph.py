"""G-Prune as pure tensor functions: the graph of an image's tokens, the flow over it, the ranking score.

Source of every equation: Jiang et al., "What Kind of Visual Tokens Do We Need? Training-free Visual Token
Pruning for Multi-modal Large Language Models from the Perspective of Graph", AAAI 2025, arXiv 2501.02268.

All functions but the last work on batches of equal size, [B, N, ...], as the paper is written. `rank_views` is the
same for views of any sizes, by the fastest way there is on their device. All compute in float32 whatever the input's
dtype and whether autocast is on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .kernels import blocks

Init = Literal["norm", "ones"]

_SMALL = 512
"""Tokens of a view up to which all its pairs at once are as fast as blocks of them."""


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
        # NaN >= similarity is false at every threshold.
        directions = blocks.directions(features)
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


def rank_views(
    features: Tensor,
    sizes: Sequence[int],
    similarity: float = 0.5,
    iterations: int = 5,
    temperature: float = 0.03,
    init: Init = "norm",
    max_memory: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`representativeness` of views of any sizes, one after the other.

    On an NVIDIA GPU all views are ranked in one sequence of launches (`gprune.kernels.cuda`, where Triton is there).
    Elsewhere small views are ranked together, all pairs at once, and larger ones by blocks of rows
    (`gprune.kernels.blocks`). Memory grows with N and not with N * N once `max_memory` is used up.

    Args:
        features: floating [T, d], finite; T is the sum of `sizes`.
        sizes: tokens of each view, which exchange nothing.
        similarity, iterations, temperature, init: see `representativeness`.
        max_memory: bytes of edges kept between steps; what it does not hold is computed anew in each. None is 512 MiB,
            on a GPU 1 GiB.

    Returns:
        Scores, float32 [T], and degrees, int64 [T].
    """
    if max_memory is None:
        max_memory = blocks.budget(features.device)
    if _has_kernels(features.device):
        from .kernels import cuda

        return cuda.representativeness(features, sizes, similarity, iterations, temperature, init, max_memory)
    scores = features.new_empty(len(features), dtype=torch.float32)
    degrees = features.new_empty(len(features), dtype=torch.int64)
    for size, starts in _groups(sizes, max_memory):
        if size > _SMALL:
            view = slice(starts[0], starts[0] + size)
            part = features[view]
            scores[view], degrees[view] = blocks.representativeness(
                part, initial_scores(part, init), similarity, iterations, temperature, max_memory
            )
        else:
            rows = torch.tensor(starts)[:, None].add(torch.arange(size)).to(features.device)
            scores[rows], degrees[rows] = representativeness(features[rows], similarity, iterations, temperature, init)
    return scores, degrees


@cache
def _has_kernels(device: torch.device) -> bool:
    """Whether this is a GPU that the kernels are written for, and Triton is there."""
    if device.type != "cuda" or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return find_spec("triton") is not None


def _groups(sizes: Sequence[int], max_memory: int) -> Iterator[tuple[int, list[int]]]:
    """Sizes, and the first rows of views of that size: one large view, or as many small ones as fit in memory."""
    starts: dict[int, list[int]] = defaultdict(list)
    for size, start in zip(sizes, accumulate(sizes, initial=0), strict=False):
        starts[size].append(start)
    starts.pop(0, None)
    for size, of_size in starts.items():
        at_once = max(1, max_memory // (16 * size * size)) if size <= _SMALL else 1
        for first in range(0, len(of_size), at_once):
            yield size, of_size[first : first + at_once]
