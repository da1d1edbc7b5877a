"""ZeroTPrune: PageRank and likeness, a token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from towered import cosines, features, known

from gprune import VisualTokens, ZeroTPrune
from gprune.pruners.zerotprune import pagerank


def left(tokens: VisualTokens, k: int) -> list[int]:
    """The paper's two stages."""
    keys = tokens.signals["keys"].double().numpy()
    n = len(keys)
    weights = np.exp(keys @ keys.T / np.sqrt(keys.shape[1]))
    attention = weights / weights.sum(1, keepdims=True)
    # The stationary distribution, by its equation instead of by steps.
    system = np.vstack([attention.T - np.eye(n), np.ones(n)])
    importance = np.linalg.lstsq(system, np.array([0.0] * n + [1.0]), rcond=None)[0]
    order = sorted(range(n), key=lambda i: -importance[i])
    alike = min((n - k) // 2, k)
    order = order[: k + alike]
    cosine = cosines(tokens.signals["keys"])
    more, less = order[0::2], order[1::2]
    likeness = {i: max(cosine[i, j] for j in more) for i in less}
    dropped = sorted(less, key=lambda i: -likeness[i])[:alike]
    return sorted(set(order) - set(dropped))


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_paper_token_by_token(seed):
    tokens = known(features(40), seed)
    for k in range(1, 41):
        assert ZeroTPrune(k).select(tokens).kept.tolist() == left(tokens, k)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(24)), st.integers(1, 24))
def test_the_order_of_the_tokens_does_not_matter(places, k):
    tokens = known(features(24))
    signals = {name: values[list(places)] for name, values in tokens.signals.items()}
    shuffled = VisualTokens(tokens.features, tokens.views, tokens.sizes, signals)
    assert (
        sorted(places[i] for i in ZeroTPrune(k).select(shuffled).kept.tolist())
        == ZeroTPrune(k).select(tokens).kept.tolist()
    )


def test_importance_is_a_fixed_point_of_attention():
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(20, 20, generator=generator, dtype=torch.float64).softmax(-1)
    scores = pagerank(attention)
    torch.testing.assert_close(scores @ attention, scores, rtol=0, atol=1e-12)
    assert scores.sum().item() == pytest.approx(1)
