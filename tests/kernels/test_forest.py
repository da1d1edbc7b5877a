"""Spanning forests against Kruskal's algorithm, an edge at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gprune.kernels.forest import components, spanning_forest
from gprune.kernels.gram import Gram


def kruskal(blocks: Sequence[Tensor]) -> list[tuple[int, int, float]]:
    """The edges that join two trees, from the strongest of all down; of equal ones the first."""
    edges, start = [], 0
    for products in blocks:
        n = len(products)
        edges += [(start + i, start + j, float(products[i, j])) for i in range(n) for j in range(i + 1, n)]
        start += n
    tree = list(range(start))
    chosen = []
    for i, j, weight in sorted(edges, key=lambda edge: (-edge[2], edge[0], edge[1])):
        if tree[i] != tree[j]:
            chosen.append((i, j, weight))
            tree = [tree[i] if own == tree[j] else own for own in tree]
    return chosen


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any),
    levels=st.sampled_from([1, 2, 1000]),
    seed=st.integers(0, 2**20),
    memory=st.sampled_from([0, 2**20]),
)
def test_the_strongest_forest_of_every_block(sizes, levels, seed, memory):
    """With many equal weights or none, held in memory or not."""
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randint(-levels, levels + 1, (size, 3), generator=generator).double() for size in sizes]
    edges, weights = spanning_forest([Gram(each, max_memory=memory) for each in vectors])
    expected = kruskal([each @ each.T for each in vectors])
    assert list(zip(*edges.tolist(), weights.tolist(), strict=True)) == expected


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), data=st.data())
def test_components_are_named_by_their_lowest_node(count, data):
    ends = st.integers(0, count - 1)
    edges = data.draw(st.lists(st.tuples(ends, ends), max_size=40))
    label = list(range(count))
    for i, j in edges:
        low, high = sorted((label[i], label[j]))
        label = [low if own == high else own for own in label]
    given_edges = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    assert components(count, given_edges).tolist() == label


def test_a_long_chain_is_one_component():
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    assert not components(3000, torch.stack([order[:-1], order[1:]])).any()
