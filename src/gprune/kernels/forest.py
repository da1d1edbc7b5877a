"""Maximum spanning forests: what single linkage needs to have exactly so many components, at any number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .gram import Gram


def spanning_forest(similarity: Sequence[Gram]) -> tuple[Tensor, Tensor]:
    """The maximum spanning tree of each block of nodes, by Boruvka's rounds, of which there are at most log2(n).

    The nodes of all blocks are numbered one block after the other. Edges come strongest first, equal ones by
    their lower end and then the other. So the first n - m edges leave the m components that n nodes have
    at the threshold of the last of them, and at equal weights still exactly m.

    Args:
        similarity: of the nodes of each block, symmetric; at least one block.

    Returns:
        Edges, int64 [2, e], the lower end first, and their weights, floating [e]; e is n less the blocks that have any
        node.
    """
    count = sum(block.count for block in similarity)
    label = index = torch.arange(count, device=similarity[0].device)
    keys, weights = [index[:0]], []
    while True:
        weight, partner = strongest_outside(similarity, label)
        # Of equal edges each node and each component takes the first, so that no circle comes of them.
        key = torch.minimum(index, partner) * count + torch.maximum(index, partner)
        order = key.argsort(stable=True)
        best = first_of_each(label, order[weight[order].argsort(descending=True, stable=True)])
        best = best[weight[best] > -torch.inf]
        keys.append(key[best])
        weights.append(weight[best])
        if not len(best):
            break
        label = components(count, edges_of(torch.cat(keys), count))
    # An edge that two components chose is there twice.
    chosen, place = torch.cat(keys).unique(return_inverse=True)
    weight = torch.cat(weights).new_empty(len(chosen)).index_copy_(0, place, torch.cat(weights))
    order = weight.argsort(descending=True, stable=True)
    return edges_of(chosen[order], count), weight[order]


def strongest_outside(similarity: Sequence[Gram], label: Tensor) -> tuple[Tensor, Tensor]:
    """Of each node the most similar one of its block that has another label: its similarity, -inf if none, and number.

    Args:
        similarity: see `spanning_forest`.
        label: int64 [n].
    """
    values, partners, start = [], [], 0
    for block in similarity:
        own = label[start : start + block.count]
        for part, rows in block.parts() if block.count else ():
            best = rows.masked_fill_(own[part, None] == own, -torch.inf).max(-1)
            values.append(best.values)
            partners.append(best.indices + start)
        start += block.count
    return torch.cat(values), torch.cat(partners)


def components(count: int, edges: Tensor) -> Tensor:
    """The lowest node that each of `count` nodes is connected with by edges, int64 [2, e]: int64 [count]."""
    label = torch.arange(count, device=edges.device)
    while True:
        lower = label
        for one, other in (edges, edges.flip(0)):
            lower = lower.scatter_reduce(0, one, label[other], "amin")
        lower = lower[lower]
        if torch.equal(lower, label):
            return label
        label = lower


def first_of_each(label: Tensor, order: Tensor) -> Tensor:
    """Of each label, int64 [n], the node that comes first in an order of all, int64 [n]; by ascending label."""
    order = order[label[order].argsort(stable=True)]
    starts = torch.ones_like(order, dtype=torch.bool)
    starts[1:] = label[order[1:]] != label[order[:-1]]
    return order[starts]


def edges_of(keys: Tensor, count: int) -> Tensor:
    """int64 [2, e]: the two ends of edges numbered as lower * count + upper, int64 [e]."""
    return torch.stack([keys // count, keys % count])
