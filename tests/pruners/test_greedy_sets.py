"""What all methods have in common that choose a set token by token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from towered import features

from gprune import DivPrune, GraphCover, GraphVote

pytestmark = pytest.mark.parametrize("method", [DivPrune, GraphCover, GraphVote])


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(0, 100), st.data())
def test_exactly_k_distinct_tokens_and_all_that_a_smaller_k_keeps(method, n, seed, data):
    k = data.draw(st.integers(1, n))
    many = method(k).select(features(n, seed=seed)).kept.tolist()
    assert len(set(many)) == k
    assert set(method(max(1, k - 1)).select(features(n, seed=seed)).kept.tolist()) <= set(many)


@settings(max_examples=40)
@given(st.permutations(range(24)), st.integers(1, 24))
def test_the_order_of_the_tokens_does_not_matter(method, order, k):
    tokens = features(24)
    kept = method(k).select(tokens[list(order)]).kept.tolist()
    assert sorted(order[i] for i in kept) == method(k).select(tokens).kept.tolist()
