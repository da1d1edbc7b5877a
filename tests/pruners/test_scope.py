"""SCOPE: every step takes the token with the largest product of what it adds and how salient it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from towered import clustered, cosines, features, known, zeros_among

from gprune import SCOPE, VisualTokens


def greedy(tokens: VisualTokens, alpha: float, k: int) -> list[int]:
    """The paper's gain, a pair at a time."""
    cosine = cosines(tokens.features)
    saliency = tokens.signals["attention"].double().numpy()
    every, chosen = range(len(cosine)), list[int]()
    while len(chosen) < k:
        covered = [max([0.0, *(cosine[u, s] for s in chosen)]) for u in every]
        value = {
            v: sum(max(covered[u], cosine[u, v]) - covered[u] for u in every) * saliency[v] ** alpha
            for v in every
            if v not in chosen
        }
        chosen.append(max(value, key=lambda v: value[v]))
    return chosen


def kept(tokens: VisualTokens, k: int, alpha: float = 0.5) -> list[int]:
    return SCOPE(k, alpha=alpha).select(tokens).kept.tolist()


@pytest.mark.parametrize("make", [features, clustered, zeros_among])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(2))
def test_every_step_is_the_best_one(make, alpha, seed):
    tokens = known(make(24, seed=seed), seed)
    expected = greedy(tokens, alpha, 12)
    assert [kept(tokens, k, alpha) for k in range(1, 13)] == [sorted(expected[:k]) for k in range(1, 13)]


def test_copies_add_nothing():
    """On axes, every one is covered, the salient first, and of copies the most salient stands for all."""
    tokens = known(torch.eye(3)[[0, 0, 1, 1, 2, 2]])
    attention = torch.tensor([0.1, 0.2, 0.9, 0.3, 0.5, 0.5])
    tokens = replace(tokens, signals={"attention": attention})
    assert [kept(tokens, k) for k in (1, 2, 3)] == [[2], [2, 4], [1, 2, 4]]
    assert kept(tokens, 6) == list(range(6))


def test_what_nothing_looks_at_comes_last():
    tokens = replace(known(features(9)), signals={"attention": (torch.arange(9) % 3 == 0).float()})
    assert kept(tokens, 3) == [0, 3, 6]


@pytest.mark.parametrize("seed", range(2))
def test_without_memory_for_all_similarities_it_keeps_the_same(seed, monkeypatch):
    tokens = known(features(100, d=40, seed=seed), seed)
    expected = kept(tokens, 40)
    monkeypatch.setattr("gprune.kernels.gram.budget", lambda device: 0)
    assert kept(tokens, 40) == expected
