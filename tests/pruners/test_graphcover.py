"""GraphCover: what it keeps is what plain greedy keeps, near the best there is, and of every region first one token."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from towered import clustered, features

from gprune import GPrune, GraphCover, View, VisualTokens
from gprune.cli.options import read_runs
from gprune.kernels.gram import Gram
from gprune.kernels.greedy import FacilityLocation
from gprune.kernels.greedy import greedy as choose


def similarities(tokens: Tensor, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """s(i, j), float64 [N, N], and |x_i|, float64 [N]."""
    x = tokens.double().numpy()
    lengths = np.linalg.norm(x, axis=1)
    return np.exp((x @ x.T / np.outer(lengths, lengths) - 1) / temperature), lengths


def value(similarity: np.ndarray, weights: np.ndarray, rows: list[int] | tuple[int, ...]) -> float:
    """f of a set, as defined."""
    return float(sum(w * max((s[j] for j in rows), default=0.0) for s, w in zip(similarity, weights, strict=True)))


def greedy(similarity: np.ndarray, weights: np.ndarray, k: int) -> list[int]:
    """Try every token at every step."""
    chosen: list[int] = []
    while len(chosen) < k:
        others = [j for j in range(len(weights)) if j not in chosen]
        values = [value(similarity, weights, [*chosen, j]) for j in others]
        chosen.append(others[int(np.argmax(values))])
    return chosen


def kept(tokens: Tensor, k: int, temperature: float = 0.1) -> list[int]:
    return GraphCover(k, temperature=temperature).select(tokens).kept.tolist()


@pytest.mark.parametrize("make", [features, clustered])
@pytest.mark.parametrize("temperature", [0.03, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_every_step_is_the_best_there_is(make, temperature, seed):
    tokens = make(24, seed=seed)
    expected = greedy(*similarities(tokens, temperature), 24)
    for k in range(1, 25):
        assert kept(tokens, k, temperature) == sorted(expected[:k])


def test_many_steps_leave_no_error_behind():
    """What every token would add is counted anew at every step; in float32 the sums would differ too much."""
    tokens = torch.cat([clustered(200), features(100)])
    directions, weights = torch.nn.functional.normalize(tokens.double(), dim=-1), tokens.double().norm(dim=-1)
    similarity = Gram(directions[None], lambda cosine: cosine.sub(1).div(0.1).exp())
    s, covered, expected = similarity.rows(torch.arange(300))[0], torch.zeros(300, dtype=torch.float64), []
    for _ in range(300):
        gains = weights @ (s - covered[:, None]).clamp(min=0)
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        covered = torch.maximum(covered, s[:, expected[-1]])
    assert choose(FacilityLocation(similarity, weights[None]), 300)[0].tolist() == expected


@pytest.mark.parametrize("make", [features, clustered])
@pytest.mark.parametrize("seed", range(3))
def test_without_memory_for_all_similarities_it_keeps_the_same(make, seed, monkeypatch):
    tokens = make(200, seed=seed)
    expected = kept(tokens, 60)
    monkeypatch.setattr("gprune.kernels.gram.budget", lambda device: 0)
    monkeypatch.setattr("gprune.kernels.gram.PAIRS", 1000)
    assert kept(tokens, 60) == expected


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(0, 1000), st.sampled_from([0.05, 0.3, 2.0]), st.data())
def test_greedy_is_within_the_bound_of_the_best_set(n, seed, temperature, data):
    k = data.draw(st.integers(1, n))
    tokens = features(n, d=3, seed=seed)
    similarity, weights = similarities(tokens, temperature)
    best = max(value(similarity, weights, rows) for rows in combinations(range(n), k))
    assert value(similarity, weights, kept(tokens, k, temperature)) >= (1 - 1 / math.e) * best


@settings(max_examples=60)
@given(st.integers(1, 12), st.data())
def test_any_symmetric_similarity_with_any_weights(n, data):
    """Sixteenths add up without rounding, so that every tie is a tie: the lower index comes first."""
    sixteenths = st.integers(0, 16).map(lambda value: value / 16)
    square = data.draw(st.lists(sixteenths, min_size=n * n, max_size=n * n))
    weights = np.array(data.draw(st.lists(sixteenths, min_size=n, max_size=n)))
    similarity = np.array(square).reshape(n, n)
    similarity = np.maximum(similarity, similarity.T)
    read = Gram(torch.eye(n)[None], lambda products: torch.tensor(similarity)[None])
    chosen = choose(FacilityLocation(read, torch.tensor(weights)[None]), n)[0].tolist()
    assert chosen == greedy(similarity, weights, n)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_every_region_is_represented_before_any_has_two(axes):
    """The largest first, and of equals the first."""
    tokens = torch.eye(6)[axes]
    firsts = {axis: axes.index(axis) for axis in axes}
    by_size = sorted(firsts.values(), key=lambda i: (-axes.count(axes[i]), i))
    for k in range(1, len(by_size) + 1):
        assert kept(tokens, k) == sorted(by_size[:k])
    others = [i for i in range(len(axes)) if i not in by_size]
    assert kept(tokens, len(axes)) == list(range(len(axes)))
    if others:
        assert kept(tokens, len(by_size) + 1) == sorted([*by_size, others[0]])


def test_long_tokens_count_for_more():
    tokens = torch.eye(3)[[0, 0, 0, 1, 2]] * torch.tensor([1.0, 1, 1, 5, 4])[:, None]
    assert [kept(tokens, k) for k in (1, 2, 3)] == [[3], [3, 4], [0, 3, 4]]


def test_a_region_that_gprune_loses_keeps_its_representative():
    """Three equal tokens of one region, longer than the two of the other, fill G-Prune's budget of two."""
    tokens = torch.eye(2)[[0, 0, 0, 1, 1]] * torch.tensor([3.0, 3, 3, 1, 1])[:, None]
    assert GPrune(2).select(tokens).kept.tolist() == [0, 1]
    assert kept(tokens, 2) == [0, 3]


@pytest.mark.parametrize("tokens", [torch.eye(9), torch.ones(9, 4), torch.zeros(9, 4)], ids=["apart", "equal", "zero"])
def test_tokens_that_say_equally_much_go_by_index(tokens):
    assert kept(tokens, 4) == [0, 1, 2, 3]


def test_with_image_scope_a_view_need_not_repeat_what_another_has():
    """Two views of the same eight regions: apart, each keeps the same four; together, every region is kept once."""
    tokens = torch.eye(8)[[*range(8), 0, *range(8)]]
    views = (View(torch.arange(8), (2, 4)), View(torch.arange(9, 17), (2, 4)))
    seen = VisualTokens(tokens, views, (17,))
    assert GraphCover(8).select(seen).kept.tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 12]
    assert GraphCover(8, scope="image").select(seen).kept.tolist() == [*range(8), 8]


def test_settings_on_the_command_line():
    assert read_runs("graphcover:temperature=0.2,divprune", "0.3")[0][0][1] == GraphCover(0.3, temperature=0.2)
