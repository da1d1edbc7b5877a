"""Bipartite soft matching by plain loops in float64, as arXiv 2210.09461 states it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def merge_once(metric: Tensor, merges: int, class_token: bool = False) -> list[list[int]]:
    """Merge that many of the tokens [n, d] of set A, the even ones, into those of set B.

    Returns:
        The indices that make up each token that is left, first the one whose place it has; A before B.
    """
    metric = metric.detach().double()
    first, second = list(range(0, len(metric), 2)), list(range(1, len(metric), 2))
    edges = []
    for a in first[1:] if class_token else first:
        likeness = [float(cosine_similarity(metric[a], metric[b], dim=0)) for b in second]
        best = max(likeness)
        edges.append((best, a, second[likeness.index(best)]))
    edges.sort(key=lambda edge: -edge[0])
    into = {a: b for _, a, b in edges[:merges]}
    alone = [[a] for a in first if a not in into]
    return alone + [[b, *sorted(a for a in into if into[a] == b)] for b in second]


def merge_to(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Rounds of it on features [n, d], each merging at most half, until k are left.

    Returns:
        int64 [k], their rows in order, and [k, d], the mean of all that each stands for.
    """
    groups = [[row] for row in range(len(features))]
    while len(groups) > k:
        means = torch.stack([features[group].double().mean(0) for group in groups])
        made = merge_once(means, min(len(groups) // 2, len(groups) - k))
        groups = [[row for index in parts for row in groups[index]] for parts in made]
    groups.sort(key=lambda group: group[0])
    means = torch.stack([features[group].double().mean(0) for group in groups])
    return torch.tensor([group[0] for group in groups]), means.to(features.dtype)
