"""CDPruner: every greedy step is the best one by brute force, over the kernel of the paper."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from towered import clustered, cosines, features, known

from gprune import CDPruner, VisualTokens
from gprune.kernels.greedy import greedy as choose
from gprune.pruners.cdpruner import Volume, relevance


def kernel(tokens: VisualTokens) -> np.ndarray:
    """The conditional kernel, an entry at a time: float64 [N, N]."""
    x = tokens.features.double().numpy()
    question = tokens.questions[0].double().numpy().mean(0)
    near = [row @ question / np.linalg.norm(row) / np.linalg.norm(question) for row in x]
    relevant = [(one - min(near)) / (max(near) - min(near)) for one in near]
    cosine = cosines(tokens.features)
    return np.array(
        [[r * c * s for c, s in zip(row, relevant, strict=True)] for r, row in zip(relevant, cosine, strict=True)]
    )


def greedy(matrix: np.ndarray, k: int) -> list[int]:
    """The index with the largest determinant, again and again."""
    chosen: list[int] = []
    while len(chosen) < k:
        volume = {
            i: np.linalg.det(matrix[np.ix_([*chosen, i], [*chosen, i])]) for i in range(len(matrix)) if i not in chosen
        }
        chosen.append(max(volume, key=lambda i: volume[i]))
    return chosen


def nearness(tokens: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
    """`relevance` of one view."""
    directions = torch.nn.functional.normalize(tokens.double(), dim=-1)
    return relevance(directions[None], question.double().mean(0)[None])[0]


def order(tokens: VisualTokens, k: int) -> list[int]:
    return CDPruner(k).choose(tokens, tokens.views[0], k).tolist()


@pytest.mark.parametrize("make", [features, clustered])
@pytest.mark.parametrize("seed", range(6))
def test_every_step_is_the_best_one(make, seed):
    tokens = known(make(18, d=16, seed=seed), seed)
    assert order(tokens, 8) == greedy(kernel(tokens), 8)


@pytest.mark.parametrize("seed", range(8))
def test_the_determinant_is_near_the_largest_possible(seed):
    """Greedy has no guarantee for the determinant itself, but on small sets it is seldom far off; never above."""
    tokens = known(features(9, d=9, seed=seed), seed)
    matrix = kernel(tokens)
    best = max(np.linalg.det(matrix[np.ix_(rows, rows)]) for rows in map(list, combinations(range(9), 3)))
    found = np.linalg.det(matrix[np.ix_(order(tokens, 3), order(tokens, 3))])
    assert best / 6**2 - 1e-12 <= found <= best + 1e-12  # greedy is within k!^2 of the largest


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(0, 100), st.data())
def test_a_larger_budget_keeps_all_of_a_smaller(n, seed, data):
    tokens = known(features(n, d=4, seed=seed), seed)
    k = data.draw(st.integers(2, n))
    assert order(tokens, k)[:-1] == order(tokens, k - 1)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 8))
def test_the_order_of_the_tokens_does_not_matter(places, k):
    tokens = known(features(12, d=12))
    shuffled = VisualTokens(tokens.features[list(places)], tokens.views, tokens.sizes, tokens.signals, tokens.questions)
    assert [places[i] for i in order(shuffled, k)] == order(tokens, k)


@pytest.mark.parametrize("seed", range(3))
def test_without_memory_for_all_similarities_it_keeps_the_same(seed, monkeypatch):
    tokens = known(features(100, d=40, seed=seed), seed)
    expected = order(tokens, 50)
    monkeypatch.setattr("gprune.kernels.gram.budget", lambda device: 0)
    assert order(tokens, 50) == expected


def test_the_first_token_is_the_most_relevant_one():
    tokens = known(features(20))
    nearest = torch.cosine_similarity(tokens.features, tokens.questions[0].mean(0)[None]).argmax()
    assert order(tokens, 1) == [int(nearest)]


def test_copies_come_last_and_by_relevance():
    """Once the directions are used up, a copy adds no volume."""
    axes = torch.eye(3)[[0, 0, 1, 1, 2]] * torch.tensor([[1.0], [2.0], [1.0], [5.0], [1.0]])
    tokens = VisualTokens.of(axes)
    question = (torch.tensor([[1.0, 3.0, 2.0]]),)
    tokens = VisualTokens(axes, tokens.views, tokens.sizes, questions=question)
    # Axis 1 is nearest to the question, axis 2 next; axis 0 is farthest, so that its relevance is 0.
    assert order(tokens, 5) == [2, 4, 3, 0, 1]


def test_a_token_like_one_kept_gives_way_to_a_less_relevant_one():
    tokens = torch.tensor([[1.0, 0, 0], [1.0, 0.05, 0], [0.5, 0, 1.0], [-1.0, 0, 0]])
    image = VisualTokens.of(tokens)
    image = VisualTokens(tokens, image.views, image.sizes, questions=(torch.tensor([[1.0, 0, 0]]),))
    assert order(image, 2) == [0, 2]


def test_more_tokens_than_dimensions():
    tokens = known(features(40, d=3))
    assert sorted(order(tokens, 40)) == list(range(40))
    relevant = nearness(tokens.features, tokens.questions[0])
    tail = relevant[order(tokens, 40)[3:]]
    assert (tail[:-1] >= tail[1:]).all()


def test_relevance_is_scaled_to_the_view():
    near = nearness(features(10), features(3, seed=1))
    assert near.min() == 0 and near.max() == 1
    assert nearness(torch.ones(4, 3), torch.ones(2, 3)).tolist() == [1, 1, 1, 1]


def test_the_determinant_of_what_is_chosen():
    """The volumes that the Cholesky update finds are those of the matrix."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    matrix = root @ root.T
    matrix /= matrix.diagonal().max()
    chosen = choose(Volume(matrix[None], torch.zeros(1, 12, dtype=torch.float64), 12), 12)[0].tolist()
    assert chosen == greedy(matrix.numpy(), 12)
