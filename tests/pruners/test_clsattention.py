"""ClsAttention: the tokens that are attended to most."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from towered import features, known, two_views

from gprune import ClsAttention


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 100), st.data())
def test_keeps_the_most_attended(n, seed, data):
    tokens = known(features(n, seed=seed), seed)
    k = data.draw(st.integers(1, n))
    best = sorted(range(n), key=lambda i: -tokens.signals["attention"][i].item())[:k]
    assert ClsAttention(k).select(tokens).kept.tolist() == sorted(best)


def test_scores_are_the_attention():
    tokens = two_views()
    scores = ClsAttention(0.5).select(tokens).scores
    assert scores is not None and scores.dtype == torch.float32
    torch.testing.assert_close(scores, tokens.signals["attention"], equal_nan=True, rtol=0, atol=0)


def test_of_equals_the_first_is_kept():
    tokens = known(features(6))
    tokens.signals["attention"][:] = torch.tensor([0.1, 0.3, 0.1, 0.3, 0.1, 0.3])
    assert ClsAttention(4).select(tokens).kept.tolist() == [0, 1, 3, 5]
