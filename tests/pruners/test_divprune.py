"""DivPrune: what it keeps is what the paper's greedy keeps, and spreads over the directions of the tokens."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from towered import clustered, features

from gprune import DivPrune
from gprune.kernels.gram import Gram
from gprune.kernels.greedy import greedy as choose
from gprune.pruners.divprune import Farthest


def distances(tokens: Tensor) -> np.ndarray:
    """Cosine distance of every pair: float64 [N, N]."""
    x = tokens.double().numpy()
    lengths = np.linalg.norm(x, axis=1)
    return 1 - x @ x.T / np.outer(lengths, lengths)


def greedy(tokens: Tensor, k: int) -> list[int]:
    """Max-min diversity as the paper states it, one pair at a time."""
    distance = distances(tokens)
    everyone = range(len(tokens))
    chosen: list[int] = []
    while len(chosen) < k:
        closest = {
            i: min((distance[i, j] for j in (chosen or everyone) if j != i), default=0.0)
            for i in everyone
            if i not in chosen
        }
        chosen.append(max(closest, key=lambda i: closest[i]))
    return sorted(chosen)


def kept(tokens: Tensor, k: int) -> list[int]:
    return DivPrune(k).select(tokens).kept.tolist()


@pytest.mark.parametrize("make", [features, clustered])
@pytest.mark.parametrize("seed", range(5))
def test_without_memory_for_all_similarities_it_keeps_the_same(make, seed):
    directions = torch.nn.functional.normalize(make(200, seed=seed), dim=-1)[None]
    orders = [choose(Farthest(Gram(directions, max_memory=memory)), 60) for memory in (0, None)]
    assert torch.equal(*orders)


@pytest.mark.parametrize("make", [features, clustered])
@pytest.mark.parametrize("seed", range(5))
def test_every_step_is_that_of_the_paper(make, seed):
    tokens = make(30, seed=seed)
    for k in range(1, 31):
        assert kept(tokens, k) == greedy(tokens, k)


@settings(max_examples=40)
@given(st.integers(2, 9), st.data())
def test_the_least_distance_is_within_a_quarter_of_the_best_possible(n, data):
    """Farthest-first is within 1/2 of the best in Euclidean distance, whose square is twice the cosine distance."""
    k, seed = data.draw(st.integers(2, n)), data.draw(st.integers(0, 1000))
    tokens = features(n, d=3, seed=seed)
    distance = distances(tokens)

    def least(rows):
        return min(distance[pair] for pair in combinations(rows, 2))

    best = max(least(rows) for rows in combinations(range(n), k))
    assert least(kept(tokens, k)) >= best / 4 - 1e-6


@settings(max_examples=40)
@given(st.lists(st.integers(-3, 3), min_size=20, max_size=20), st.integers(1, 20))
def test_only_directions_count(exponents, k):
    tokens = features(20)
    assert kept(tokens * torch.tensor(exponents).exp2()[:, None], k) == kept(tokens, k)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_every_direction_is_kept_before_any_copy(axes):
    """Of equals the first is kept."""
    tokens = torch.eye(6)[axes]
    firsts = sorted(axes.index(axis) for axis in set(axes))
    assert kept(tokens, len(firsts)) == firsts
    others = [i for i in range(len(axes)) if i not in firsts]
    if others:
        assert kept(tokens, len(firsts) + 1) == sorted([*firsts, others[0]])


def test_tokens_that_are_all_equal_go_by_index():
    assert kept(torch.ones(9, 4), 4) == [0, 1, 2, 3]


def test_the_first_token_is_the_most_isolated_one():
    """One lies 90 degrees off, two others are 180 degrees apart but have company."""
    tokens = torch.tensor([[1.0, 0, 0], [1.0, 0.1, 0], [-1.0, 0, 0], [-1.0, 0.1, 0], [0, 0, 1.0]])
    assert kept(tokens, 1) == [4]


def test_a_token_without_a_direction_is_orthogonal_to_all():
    tokens = torch.tensor([[1.0, 0], [0, 0], [0.8, 0.6], [-1.0, 0]])
    assert kept(tokens, 1) == [1]
    assert kept(tokens, 2) == [0, 1]
    assert kept(tokens, 3) == [0, 1, 3]
    assert kept(torch.zeros(3, 4), 2) == [0, 1]
