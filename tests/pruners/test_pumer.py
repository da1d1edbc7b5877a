"""PuMer against the paper's rule, a token at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from towered import clustered, features, inside, zeros_among
from wordwise import pumer

from gprune import PuMer
from gprune.pruners.decoder import standing


def told_apart(states: torch.Tensor) -> bool:
    """Whether float32, in which tokens are compared, tells which odd one each even one is most like, and how much."""
    directions = torch.nn.functional.normalize(states.double(), dim=-1)
    likeness = (directions[::2] @ directions[1::2].T).sort(descending=True).values
    gaps = [likeness[:, :2].diff().abs(), likeness[:, :1].sort(0).values.diff(dim=0)]
    return all(bool((gap > 3e-7).all()) for gap in gaps)


@given(
    st.sampled_from([features, clustered]),
    st.integers(1, 50),
    st.integers(0, 9),
    st.sampled_from([0.25, 0.0, 1.0, 0.6]),
    st.integers(0, 2**20),
    st.data(),
)
def test_equals_the_paper_token_by_token(make, n, text, dropped, seed, data):
    seen, k = replace(inside(n, text, seed), states=make(n, 12, seed)), data.draw(st.integers(1, n))
    pruner, expected = PuMer(0.5, dropped=dropped), pumer(seen, k, dropped)
    assume(told_apart(seen.states[torch.stack([*expected.values()]).any(0)]))
    assert pruner.choose(seen, k).tolist() == sorted(expected)
    wanted = torch.stack([expected[i] for i in sorted(expected)]).double() @ seen.states.double()
    torch.testing.assert_close(pruner.merged(seen.states, pruner.stands(seen, k)), wanted.float(), rtol=1e-5, atol=1e-5)


def duplicates(n: int, d: int, seed: int) -> torch.Tensor:
    return features(3, d, seed)[torch.arange(n) // 2 % 3]


@pytest.mark.parametrize("make", [duplicates, zeros_among])
def test_tokens_that_are_alike_are_merged_first_and_stay_what_they_are(make):
    """Every token of an even place has a copy, which it is merged into; none is dropped."""
    for seed in range(3):
        seen = replace(inside(24, 5, seed), states=make(24, 12, seed).repeat_interleave(2, 0)[:24])
        pruner = PuMer(0.5, dropped=0.0)
        stands = pruner.stands(seen, 12)
        assert (stands >= 0).all() and len(standing(stands)) == 12
        torch.testing.assert_close(seen.states[stands], seen.states, rtol=0, atol=1e-6)
        torch.testing.assert_close(pruner.merged(seen.states, stands), seen.states[standing(stands)])


def test_with_all_dropped_it_is_what_the_text_attends_to():
    seen = inside(30, 6, 0)
    best = seen.text_attention[1:].mean(0).sort(descending=True).indices[:11].sort().values
    pruner = PuMer(0.5, dropped=1.0)
    assert torch.equal(pruner.choose(seen, 11), best)
    assert torch.equal(pruner.merged(seen.states, pruner.stands(seen, 11)), seen.states[best])


def test_at_most_half_of_what_is_left_is_merged():
    stands = PuMer(0.5, dropped=0.0).stands(inside(30, 6, 0), 3)
    assert int((stands >= 0).sum()) == 6


def test_stages_of_the_paper():
    """Layers 2, 5 and 8 of ViLT's 12."""
    expected = [160] * 2 + [80] * 3 + [40] * 3 + [20] * 4
    assert PuMer(sum(expected) / 160 / 12).counts(160, 12) == expected
