"""GraphVote: what it keeps is what the rule elects, step by step, and groups share the seats in proportion."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize
from towered import clustered, cosines, features

from gprune import GraphCover, GraphVote, View, VisualTokens
from gprune.cli.options import read_runs
from gprune.kernels.gram import Gram
from gprune.pruners.graphvote import elected, votes_of


def temperature(cosine: np.ndarray, total: float) -> float:
    """The temperature at which the votes of a token add up to `total`, by halving."""
    low, high = math.log(1e-4), math.log(0.1)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if np.exp((cosine - 1) / math.exp(middle)).sum() > total else (middle, high)
    return math.exp(high)


def ballots(cosine: np.ndarray, total: float = 4) -> np.ndarray:
    """S, float64 [N, N]: row i votes."""
    return np.stack([np.exp((row - 1) / temperature(row, total)) for row in cosine])


def election(votes: np.ndarray, weights: np.ndarray, k: int, discount: float = 1000) -> list[int]:
    """Count every gain at every step."""
    chosen: list[int] = []
    represented = np.zeros(len(votes))
    for _ in range(k):
        gains = (weights / (1 + discount * represented)) @ votes
        gains[chosen] = -1
        chosen.append(int(np.argmax(gains)))
        represented += votes[:, chosen[-1]]
    return chosen


def reference(tokens: Tensor, k: int, discount: float = 1000) -> list[int]:
    """The tokens kept of a view, in the order chosen."""
    return election(ballots(np.minimum(cosines(tokens), 1)), tokens.double().norm(dim=1).numpy(), k, discount)


def kept(tokens: Tensor, k: int, discount: float = 1000.0) -> list[int]:
    return GraphVote(k, discount=discount).select(tokens).kept.tolist()


def in_turn(tokens: Tensor, k: int, discount: float = 1000.0) -> list[int]:
    """What is kept, in the order chosen."""
    return GraphVote(discount=discount).choose(VisualTokens.of(tokens), View(torch.arange(len(tokens))), k).tolist()


def by_float64(tokens: Tensor, k: int, discount: float = 1000.0) -> list[int]:
    """What is elected of float64 cosines, in the order chosen."""
    exact = tokens.double()[None]
    return elected(votes_of(normalize(exact, dim=-1), 4), exact.norm(dim=-1), k, discount)[0].tolist()


@pytest.mark.parametrize("make", [features, clustered])
@pytest.mark.parametrize("discount", [1.0, 16.0, 1000.0])
@pytest.mark.parametrize("seed", range(3))
def test_every_step_is_the_best_there_is(make, discount, seed):
    tokens = make(24, seed=seed)
    for k in range(1, 25):
        assert by_float64(tokens, k, discount) == reference(tokens, k, discount)


@pytest.mark.parametrize("k", [30, 90, 200])
@pytest.mark.parametrize("make", [features, clustered])
def test_many_steps_are_the_best_there_are(make, k):
    """What is left of a gain late in the election is a thousandth of what it was."""
    tokens = make(300, d=16)
    assert by_float64(tokens, k) == reference(tokens, k)


@pytest.mark.parametrize("discount", [1.0, 1000.0])
@pytest.mark.parametrize("seed", range(5))
def test_in_float32_it_elects_the_same_of_tokens_that_differ(discount, seed):
    """Cosines of near-copies are not told apart by it, and which of them is kept matters as little."""
    tokens = features(100, seed=seed)
    for k in (1, 3, 10, 30, 70, 100):
        assert in_turn(tokens, k, discount) == reference(tokens, k, discount)


@pytest.mark.parametrize("seed", range(6))
def test_without_memory_for_all_votes_it_keeps_the_same(seed, monkeypatch):
    tokens = features(200, seed=seed)
    expected = kept(tokens, 60)
    monkeypatch.setattr("gprune.kernels.gram.budget", lambda device: 0)
    monkeypatch.setattr("gprune.pruners.graphvote.budget", lambda device: 0)
    monkeypatch.setattr("gprune.kernels.gram.PAIRS", 1000)
    assert kept(tokens, 60) == expected


@pytest.mark.parametrize("room", [0, 40_000, 2**29])
def test_views_of_equal_size_keep_together_what_they_keep_alone(room, monkeypatch):
    """Of views with copies, without, and of zeros, whose elections need different numbers of counts."""
    monkeypatch.setattr("gprune.pruners.graphvote.budget", lambda device: room)
    parts = [clustered(40), features(40), torch.zeros(40, 8), torch.eye(8)[torch.arange(40) % 5], features(33)]
    for k in (1, 13, 33):
        views = tuple(View(rows) for rows in torch.arange(193).split([len(part) for part in parts]))
        together = VisualTokens(torch.cat(parts), views, (193,))
        chosen = [*GraphVote().choose_together(together, views[:4], k), GraphVote().choose(together, views[4], k)]
        for view, part, rows in zip(views, parts, chosen, strict=True):
            assert (rows - view.rows[0]).tolist() == in_turn(part, k)


@pytest.mark.parametrize("make", [features, clustered])
@pytest.mark.parametrize("circle", [2.0, 4.0, 20.0])
def test_the_votes_of_every_token_add_up_to_its_circle(make, circle):
    """Or to less, where the widest has no more."""
    votes = votes_of(normalize(make(60), dim=-1)[None], circle).rows(torch.arange(60))[0].sum(0)
    widest = torch.tensor(np.exp((cosines(make(60)) - 1) / 0.1).sum(1), dtype=torch.float32)
    torch.testing.assert_close(votes, widest.clamp(max=circle), rtol=1e-4, atol=0)


# --- what it satisfies ---


def parties(sizes: list[int]) -> Tensor:
    """Groups of copies, each apart from the others."""
    return torch.eye(len(sizes)).repeat_interleave(torch.tensor(sizes), 0)


def seats(sizes: list[int], k: int, discount: float) -> list[int]:
    """How many tokens of each group are kept."""
    owner = [group for group, size in enumerate(sizes) for _ in range(size)]
    return np.bincount([owner[row] for row in kept(parties(sizes), k, discount)], minlength=len(sizes)).tolist()


def by_divisors(sizes: list[int], k: int, discount: int) -> list[int]:
    """The divisor method with divisors 1 + discount * seats; ties go to the earlier; no more seats than members."""
    won = [0] * len(sizes)
    for _ in range(k):
        quotients = [Fraction(size, 1 + discount * n) if n < size else -1 for size, n in zip(sizes, won, strict=True)]
        won[quotients.index(max(quotients))] += 1
    return won


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=6), st.sampled_from([1, 2, 1000]), st.data())
def test_groups_of_copies_share_the_seats_by_a_divisor_method(sizes, discount, data):
    """Up to what the widest circle lets one group see of another, exp(-10), which decides between equals."""
    k = data.draw(st.integers(1, sum(sizes) // 2))
    found, expected = seats(sizes, k, discount), by_divisors(sizes, k, discount)
    assert sum(found) == k
    assert all(abs(one - other) <= 1 for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("keep", [0.5, 0.3, 0.1, 0.05])
@pytest.mark.parametrize("seed", range(3))
def test_clusters_keep_their_shares(keep, seed):
    sizes = torch.tensor([300, 120, 60, 20])
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 64, generator=generator).repeat_interleave(sizes, 0)
    tokens = centres + 0.25 * torch.randn(500, 64, generator=generator)

    def error(pruner):
        """Seats by which the furthest of its share is off."""
        members = torch.arange(4).repeat_interleave(sizes)[pruner.select(tokens).kept].bincount(minlength=4)
        return float((members - members.sum() * sizes / 500).abs().max())

    assert error(GraphVote(keep)) <= max(2, 0.03 * 500 * keep)
    if keep >= 0.3:
        assert error(GraphCover(keep)) > 0.1 * 500 * keep


@settings(max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_every_group_is_represented_before_any_has_two(axes):
    """The largest first, each by the first of its tokens; groups of one size in any order, which rounding decides."""
    sizes = sorted((axes.count(axis) for axis in set(axes)), reverse=True)
    for k in range(1, len(sizes) + 1):
        chosen = kept(torch.eye(6)[axes], k)
        assert all(axes.index(axes[i]) == i for i in chosen)
        assert sorted((axes.count(axes[i]) for i in chosen), reverse=True) == sizes[:k]


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(0, 1000), st.data())
def test_of_votes_of_0_and_1_it_is_within_the_bound_of_the_best_set(n, seed, data):
    """Satisfaction as Thiele counts it: 1 for the first representative, 1 / 2 for the second, ..."""
    k = data.draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(seed)
    votes = (torch.rand(n, n, generator=generator) < 0.4).double()
    weights = torch.rand(n, generator=generator)

    def satisfaction(rows):
        counts = votes[list(rows)].sum(0)
        return float(sum(w * sum(1 / (1 + t) for t in range(int(c))) for w, c in zip(weights, counts, strict=True)))

    given_votes = Gram(torch.eye(n)[None], lambda products: votes[None].clone())
    best = max(satisfaction(rows) for rows in combinations(range(n), k))
    assert satisfaction(elected(given_votes, weights[None], k, 1)[0].tolist()) >= (1 - 1 / math.e) * best - 1e-9


def test_long_tokens_count_for_more():
    tokens = torch.eye(3)[[0, 0, 0, 1, 2]] * torch.tensor([1.0, 1, 1, 5, 4])[:, None]
    assert [kept(tokens, k) for k in (1, 2, 3)] == [[3], [3, 4], [0, 3, 4]]


@pytest.mark.parametrize("tokens", [torch.eye(9), torch.ones(9, 4), torch.zeros(9, 4)], ids=["apart", "equal", "zero"])
def test_tokens_that_say_equally_much_go_by_index(tokens):
    assert kept(tokens, 4) == [0, 1, 2, 3]


def test_settings_on_the_command_line():
    assert read_runs("graphvote:discount=2,divprune", "0.3")[0][0][1] == GraphVote(0.3, discount=2)
