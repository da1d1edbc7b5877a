"""VisPruner: the attended tokens, and of the others those that are left without near-duplicates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from towered import clustered, cosines, features, known, zeros_among

from gprune import ClsAttention, VisPruner, VisualTokens


def left_over(tokens: VisualTokens, share: float, k: int) -> list[int]:
    """Important tokens, then rounds of removal, a token at a time."""
    cosine, attention = cosines(tokens.features), tokens.signals["attention"].tolist()
    order = sorted(range(len(attention)), key=lambda i: -attention[i])
    important = int(share * k + 1e-6)
    rest = sorted(order[important:])
    if important == k:
        return sorted(order[:k])
    while len(rest) > k - important:
        first, second = rest[0::2], rest[1::2]
        likeness = {i: max(cosine[i, j] for j in second) for i in first}
        goes = min(len(rest) - (k - important), max(1, len(rest) // 4))
        for i in sorted(first, key=lambda i: likeness[i])[len(first) - goes :]:
            rest.remove(i)
    return sorted(order[:important] + rest)


@pytest.mark.parametrize("make", [features, clustered, zeros_among])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_equals_the_rule(make, share, seed):
    tokens = known(make(40, seed=seed), seed)
    for k in range(1, 41):
        assert VisPruner(k, important=share).select(tokens).kept.tolist() == left_over(tokens, share, k)


def test_all_important_is_attention_alone():
    tokens = known(features(30))
    assert torch.equal(VisPruner(0.4, important=1.0).select(tokens).kept, ClsAttention(0.4).select(tokens).kept)


def test_a_duplicate_goes_and_its_like_stays():
    """Six axes, each twice, side by side: one of every pair is left."""
    tokens = known(torch.eye(6).repeat_interleave(2, dim=0))
    kept = VisPruner(6, important=0.0).select(tokens).kept
    assert sorted((kept // 2).tolist()) == [0, 1, 2, 3, 4, 5]


def test_the_important_stay_though_they_are_duplicates():
    tokens = known(torch.eye(6)[[0, 0, 0, 0, 1, 2, 3, 4]])
    tokens = replace(tokens, signals={"attention": torch.tensor([9.0, 8, 7, 6, 1, 1, 1, 1])})
    assert VisPruner(6).select(tokens).kept.tolist()[:3] == [0, 1, 2]
