"""BAT: attentive tokens and clusters, a token at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from towered import clustered, cosines, features, known
from wordwise import density_peaks

from gprune import BAT, VisualTokens


def kept(tokens: VisualTokens, k: int, share: float, matched: float) -> dict[int, np.ndarray]:
    """Row -> what stands there."""
    n = len(tokens.features)
    x, weight = tokens.features.double().numpy(), tokens.signals["attention"].double().numpy()
    distance = 1 - cosines(tokens.features)
    clusters = math.floor(share * k + 1e-6)
    pairs = min(math.floor(matched * (k - clusters) + 1e-6), n - k)
    order = sorted(range(n), key=lambda i: -weight[i])
    attentive, others = order[: k - clusters + pairs], sorted(order[k - clusters + pairs :])

    groups = {i: [i] for i in attentive}
    first, second = attentive[0::2], attentive[1::2]
    partner = {i: min(first, key=lambda j: distance[i, j]) for i in second}
    for i in sorted(second, key=lambda i: distance[i, partner[i]])[:pairs]:
        groups[partner[i]] += groups.pop(i)

    centres = [others[i] for i in density_peaks(distance[np.ix_(others, others)], clusters)] if clusters else []
    groups |= {centre: [centre] for centre in centres}
    for i in others:
        if i not in centres and centres:
            groups[min(centres, key=lambda j: distance[i, j])].append(i)
    return {i: np.average(x[own], axis=0, weights=weight[own]) for i, own in groups.items()}


@pytest.mark.parametrize("make", [features, clustered])
@pytest.mark.parametrize(("share", "matched"), [(0.25, 0.1), (0.5, 0.5), (0, 0.3), (0.3, 0), (1, 1), (0, 1)])
def test_equals_the_paper_token_by_token(make, share, matched):
    for seed in range(2):
        tokens = known(make(40, seed=seed), seed)
        for k in range(1, 41, 3):
            selection = BAT(k, clusters=share, matched=matched).select(tokens)
            expected = kept(tokens, k, share, matched)
            assert selection.kept.tolist() == sorted(expected)
            wanted = torch.tensor(np.stack([expected[i] for i in sorted(expected)])).float()
            assert selection.features is not None
            torch.testing.assert_close(selection.features, wanted, rtol=0, atol=1e-5)


def test_with_no_clusters_and_no_pairs_it_is_attention_alone():
    tokens = known(features(30))
    best = tokens.signals["attention"].sort(descending=True).indices[:12].sort().values
    selection = BAT(12, clusters=0, matched=0).select(tokens)
    assert torch.equal(selection.kept, best)
    assert selection.features is not None and torch.equal(selection.features, tokens.features[best])


def test_each_group_of_inattentive_tokens_has_one_that_stands_for_it():
    """Two attentive tokens, then three directions that nobody attends to."""
    directions = torch.eye(8)[[0, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]] + 0.01 * features(11)
    tokens = known(directions)
    tokens.signals["attention"][:] = torch.tensor([9.0, 8.0] + [0.1] * 9)
    rows = BAT(5, clusters=0.6, matched=0).select(tokens).kept.tolist()
    assert rows[:2] == [0, 1]
    assert [(row - 2) // 3 for row in rows[2:]] == [0, 1, 2]
