"""MMR: every step takes the token with the largest marginal relevance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from towered import clustered, features, zeros_among

from gprune import MMR, L2Norm


def greedy(tokens: Tensor, weight: float, k: int) -> list[int]:
    """A pair at a time, in float64."""
    x = tokens.double().numpy()
    norms = np.linalg.norm(x, axis=1)
    important = (norms - norms.min()) / (norms.max() - norms.min()) if norms.max() > norms.min() else np.ones(len(x))

    def cosine(i: int, j: int) -> float:
        return float(x[i] @ x[j] / (norms[i] * norms[j])) if norms[i] and norms[j] else 0.0

    chosen = [int(important.argmax())]
    while len(chosen) < k:
        others = [i for i in range(len(x)) if i not in chosen]
        relevance = [weight * important[i] - (1 - weight) * max(cosine(i, j) for j in chosen) for i in others]
        chosen.append(others[int(np.argmax(relevance))])
    return chosen


def kept(tokens: Tensor, k: int, weight: float = 0.5) -> list[int]:
    return MMR(k, importance=weight).select(tokens).kept.tolist()


@pytest.mark.parametrize("make", [features, clustered, zeros_among])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_every_step_is_the_best_one(make, weight, seed):
    tokens = make(24, seed=seed)
    expected = greedy(tokens, weight, 20)
    assert [kept(tokens, k, weight) for k in range(1, 21)] == [sorted(expected[:k]) for k in range(1, 21)]


def test_copies_wait_until_all_else_is_kept():
    """On axes, where cosines are exact: the longest copy first, then the next axis, and of equals the lower index."""
    tokens = torch.eye(3)[[0, 0, 1, 1, 2]] * torch.tensor([4.0, 3.5, 2.0, 3.0, 2.5])[:, None]
    order = [0, 3, 4, 1, 2]
    assert greedy(tokens, 0.5, 5) == order
    assert [kept(tokens, k) for k in range(1, 6)] == [sorted(order[:k]) for k in range(1, 6)]


def test_importance_alone_is_the_norm():
    tokens = features(30)
    assert torch.equal(MMR(0.4, importance=1.0).select(tokens).kept, L2Norm(0.4).select(tokens).kept)


@pytest.mark.parametrize("seed", range(2))
def test_without_memory_for_all_similarities_it_keeps_the_same(seed, monkeypatch):
    tokens = features(100, d=40, seed=seed)
    expected = kept(tokens, 50)
    monkeypatch.setattr("gprune.kernels.gram.budget", lambda device: 0)
    assert kept(tokens, 50) == expected
