"""What all methods have in common that choose a set token by token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from towered import clustered, features, known, zeros_among

from gprune import MMR, SCOPE, CDPruner, DivPrune, GraphCover, GraphVote, MMTok, VisualTokens

of_features = pytest.mark.parametrize("method", [DivPrune, GraphCover, GraphVote])


@of_features
@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(0, 100), st.data())
def test_exactly_k_distinct_tokens_and_all_that_a_smaller_k_keeps(method, n, seed, data):
    k = data.draw(st.integers(1, n))
    many = method(k).select(features(n, seed=seed)).kept.tolist()
    assert len(set(many)) == k
    assert set(method(max(1, k - 1)).select(features(n, seed=seed)).kept.tolist()) <= set(many)


@of_features
@settings(max_examples=40)
@given(st.permutations(range(24)), st.integers(1, 24))
def test_the_order_of_the_tokens_does_not_matter(method, order, k):
    tokens = features(24)
    kept = method(k).select(tokens[list(order)]).kept.tolist()
    assert sorted(order[i] for i in kept) == method(k).select(tokens).kept.tolist()


@pytest.mark.parametrize("method", [CDPruner, DivPrune, GraphCover, MMR, MMTok, SCOPE])
@pytest.mark.parametrize("make", [features, clustered, zeros_among])
def test_views_together_keep_what_each_keeps_alone(method, make):
    images = [known(make(40, d=24, seed=seed), seed) for seed in range(5)]
    together = method(0.4).select(VisualTokens.cat(images)).order.view(5, 16)
    alone = [method(0.4).select(image).order + 40 * i for i, image in enumerate(images)]
    assert together.tolist() == [order.tolist() for order in alone]
