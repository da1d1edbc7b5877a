"""MMTok: every step is the best one by brute force, over the two matrices of the paper."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from towered import clustered, features, known, zeros_among

from gprune import MMTok, VisualTokens


def matrices(tokens: VisualTokens) -> tuple[np.ndarray, np.ndarray]:
    """M_tv and M_vv, float64, row-softmaxed."""

    def directions(values: torch.Tensor) -> np.ndarray:
        x = values.double().numpy()
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        return np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)

    def softmax(logits: np.ndarray) -> np.ndarray:
        e = np.exp(logits - logits.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    visual, words = directions(tokens.features), directions(tokens.questions[0])
    return softmax(words @ visual.T / 0.02), softmax(visual @ visual.T / 0.2)


def value(tokens: VisualTokens, alpha: float, rows: list[int]) -> float:
    """f(M_tv; S) + alpha f(M_vv; S)."""
    text, picture = matrices(tokens)
    return float(text[:, rows].max(1).mean() + alpha * picture[:, rows].max(1).mean())


def greedy(tokens: VisualTokens, alpha: float, k: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < k:
        others = [j for j in range(len(tokens.features)) if j not in chosen]
        chosen.append(max(others, key=lambda j: value(tokens, alpha, [*chosen, j])))
    return chosen


def kept(tokens: VisualTokens, k: int, alpha: float = 0.5) -> list[int]:
    return MMTok(k, alpha=alpha).select(tokens).kept.tolist()


@pytest.mark.parametrize("make", [features, clustered, zeros_among])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 5.0])
def test_every_step_is_the_best_one(make, alpha):
    tokens = known(make(20, seed=1), 1)
    expected = greedy(tokens, alpha, 10)
    assert [kept(tokens, k, alpha) for k in range(1, 11)] == [sorted(expected[:k]) for k in range(1, 11)]


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_within_the_bound_of_the_best_set(seed):
    tokens = known(features(9, d=4, seed=seed), seed)
    best = max(value(tokens, 0.5, list(rows)) for rows in combinations(range(9), 3))
    assert value(tokens, 0.5, kept(tokens, 3)) >= (1 - 1 / math.e) * best


def test_each_word_keeps_its_token_before_any_copy():
    """Six axes, each twice; the words are along three of them."""
    tokens = replace(known(torch.eye(6).repeat_interleave(2, dim=0)), questions=(torch.eye(6)[[4, 1, 2]],))
    assert sorted(row // 2 for row in kept(tokens, 3)) == [1, 2, 4]
    assert sorted(row // 2 for row in kept(tokens, 6)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(2))
def test_without_memory_for_all_similarities_it_keeps_the_same(seed, monkeypatch):
    tokens = known(features(100, d=40, seed=seed), seed)
    expected = kept(tokens, 40)
    monkeypatch.setattr("gprune.kernels.gram.budget", lambda device: 0)
    assert kept(tokens, 40) == expected
