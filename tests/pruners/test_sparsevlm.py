"""SparseVLM against the paper's rule, a token at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from towered import clustered, features, inside, zeros_among
from wordwise import sparsevlm, sparsevlm_raters

from gprune import SparseVLM
from gprune.pruners.decoder import standing
from gprune.pruners.sparsevlm import raters


def check(pruner: SparseVLM, seen, k: int) -> None:
    expected = sparsevlm(seen, k, pruner.recycled, pruner.clusters)
    chosen = pruner.choose(seen, k)
    assert chosen.tolist() == sorted(expected)
    wanted = torch.stack([expected[i] for i in sorted(expected)]).double() @ seen.states.double()
    torch.testing.assert_close(pruner.merged(seen.states, pruner.stands(seen, k)), wanted.float(), rtol=1e-5, atol=1e-5)


@given(
    st.sampled_from([features, clustered]),
    st.integers(1, 60),
    st.integers(0, 9),
    st.sampled_from([(0.3, 0.1), (1.0, 1.0), (0.0, 0.5), (0.5, 0.0), (0.9, 0.3)]),
    st.integers(0, 2**20),
    st.data(),
)
def test_equals_the_paper_token_by_token(make, n, text, shares, seed, data):
    seen = replace(inside(n, text, seed), states=make(n, 12, seed))
    check(SparseVLM(0.5, recycled=shares[0], clusters=shares[1]), seen, data.draw(st.integers(1, n)))


@given(st.integers(2, 9), st.integers(0, 2**20))
def test_raters_are_more_about_the_picture_than_the_mean(text, seed):
    seen = inside(20, text, seed)
    assert raters(seen).nonzero().squeeze(1).tolist() == sparsevlm_raters(seen)


def test_text_before_the_image_does_not_rate_it():
    seen = inside(20, 3, 0)
    about = replace(seen, text_embeddings=torch.stack([seen.embeddings.mean(0) * 9, -seen.embeddings.mean(0)] * 2)[:3])
    assert raters(about).tolist() == [False, False, True]


def test_words_that_are_alike_all_rate_and_none_leave_it_to_the_last_token():
    seen = inside(20, 4, 0)
    alike = replace(seen, text_embeddings=torch.zeros(4, 12))
    assert raters(alike).tolist() == [False, True, True, True]
    blind = replace(seen, text_attention=torch.zeros(4, 20))
    assert not raters(blind).any()
    best = seen.attention.sort(descending=True).indices[:5].sort().values
    assert torch.equal(SparseVLM(0.5, recycled=0.0).choose(blind, 5), best)


def duplicates(n: int, d: int, seed: int) -> torch.Tensor:
    return features(3, d, seed)[torch.arange(n) % 3]


@pytest.mark.parametrize("make", [duplicates, zeros_among])
def test_nothing_recycled_is_lost_or_counted_twice(make):
    pruner = SparseVLM(0.5, recycled=1.0, clusters=0.5)
    for seed in range(5):
        seen = replace(inside(40, 5, seed), states=make(40, 12, seed))
        for k in (1, 2, 9, 39):
            stands = pruner.stands(seen, k)
            assert len(standing(stands)) == k
            own = pruner.merged(seen.states, stands)
            left = seen.states if k > 1 else seen.states[standing(stands)]
            torch.testing.assert_close(own.sum(0), left.sum(0), rtol=1e-5, atol=1e-5)


def test_stages_of_the_paper():
    """Layers 2, 6 and 15 of LLaVA-1.5's 32."""
    expected = [576] * 2 + [288] * 4 + [144] * 9 + [72] * 17
    assert SparseVLM(sum(expected) / 576 / 32).counts(576, 32) == expected


def test_gradients_flow_through_sums():
    seen = inside(30, 4, 0)
    stands = SparseVLM(0.5, recycled=1.0).stands(seen, 6)
    states = seen.states.clone().requires_grad_()
    SparseVLM(0.5).merged(states, stands).sum().backward()
    assert torch.equal(states.grad, torch.ones_like(states) * (stands >= 0)[:, None])
