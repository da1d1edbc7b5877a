"""PruMerge: attended tokens, each with the nearest of those removed merged in by attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from towered import clustered, features, known, zeros_among

from gprune import PruMerge, VisualTokens


def merged(tokens: VisualTokens, k: int, spatial: bool, neighbours: int | None) -> dict[int, np.ndarray]:
    """The paper's steps, a token at a time: row -> what stands there."""
    x, keys = tokens.features.double().numpy(), tokens.signals["keys"].double().numpy()
    attention = tokens.signals["attention"].double().numpy()
    order = sorted(range(len(x)), key=lambda i: -attention[i])
    kept = order[:k]
    if spatial:
        lower, upper = np.percentile(attention, [25, 75])
        kept = [i for i in order if attention[i] > upper + 1.5 * (upper - lower)][:k]
        rest, more = [i for i in range(len(x)) if i not in kept], k - len(kept)
        kept += [rest[(2 * i + 1) * len(rest) // (2 * more)] for i in range(more)]
    removed = [i for i in range(len(x)) if i not in kept]
    neighbours = -(-len(removed) // k) if neighbours is None else neighbours
    result = {}
    for i in kept:
        own = [i, *sorted(removed, key=lambda j: -(keys[i] @ keys[j]))[:neighbours]]
        result[i] = sum(attention[j] * x[j] for j in own) / sum(attention[j] for j in own)
    return result


def told(tokens: torch.Tensor, seed: int) -> VisualTokens:
    """With three tokens that stand out."""
    image = known(tokens, seed)
    image.signals["attention"][[3, 11, 30]] += torch.tensor([4.0, 3.0, 5.0])
    return image


@pytest.mark.parametrize("make", [features, clustered, zeros_among])
@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("neighbours", [None, 0, 3, 32])
def test_equals_the_paper(make, spatial, neighbours):
    tokens = told(make(40, seed=1), 1)
    for k in range(1, 41):
        selection = PruMerge(k, spatial=spatial, neighbours=neighbours).select(tokens)
        expected = merged(tokens, k, spatial, neighbours)
        assert selection.kept.tolist() == sorted(expected)
        assert selection.features is not None
        wanted = torch.tensor(np.stack([expected[i] for i in sorted(expected)])).float()
        torch.testing.assert_close(selection.features, wanted, rtol=0, atol=1e-5)


def test_outliers_are_kept_and_the_rest_lies_evenly():
    tokens = told(features(43), 0)
    kept = PruMerge(8, spatial=True).select(tokens).kept.tolist()
    assert set(kept) >= {3, 11, 30} and sum(i < 21 for i in kept) == 4
    assert PruMerge(2, spatial=True).select(tokens).kept.tolist() == [3, 30]


def test_without_outliers_all_lies_evenly():
    tokens = replace(known(features(40)), signals={"attention": torch.ones(40), "keys": torch.randn(40, 4)})
    assert PruMerge(4, spatial=True).select(tokens).kept.tolist() == [5, 15, 25, 35]


def test_what_nothing_attends_to_changes_nothing():
    """A removed token without attention has no weight."""
    tokens = known(features(10))
    attention = torch.zeros(10)
    attention[[2, 7]] = 1
    selection = PruMerge(2).select(replace(tokens, signals={**tokens.signals, "attention": attention}))
    assert selection.kept.tolist() == [2, 7]
    torch.testing.assert_close(selection.features, tokens.features[[2, 7]], rtol=0, atol=1e-6)
