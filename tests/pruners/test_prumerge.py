"""PruMerge: attended tokens, each with the nearest of those removed merged in by attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from towered import clustered, features, known, two_views, zeros_among

from gprune import Chain, FastV, GPrune, PruMerge, View, VisualTokens, kept_count
from gprune.cost import cost
from gprune.errors import BadValue
from gprune.spec import parse_keep, parse_pruner


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


def own_number(attention: torch.Tensor) -> int:
    """Outliers by the box plot of float64 numbers, at least one."""
    values = attention.double().numpy()
    lower, upper = np.percentile(values, [25, 75])
    return max(1, int((values > upper + 1.5 * (upper - lower)).sum()))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), seed=st.integers(0, 99), sharp=st.sampled_from([0.1, 1.0, 4.0]))
def test_its_own_number_is_that_of_the_outliers(n, seed, sharp):
    tokens = known(features(n, seed=seed), seed)
    generator = torch.Generator().manual_seed(seed)
    tokens.signals["attention"][:] = (sharp * torch.randn(n, generator=generator)).softmax(0)
    k = own_number(tokens.signals["attention"])
    selection, counted = PruMerge("own").select(tokens), PruMerge(k).select(tokens)
    assert torch.equal(selection.kept, counted.kept) and torch.equal(selection.features, counted.features)


def test_every_view_has_its_own_number_or_the_image_one():
    tokens = two_views()
    tokens.signals["attention"][[3, 20, 25, 33]] += 9
    attention = tokens.signals["attention"]
    kept = PruMerge("own").select(tokens).kept
    assert kept.tolist() == [3, 16, 20, 25, 33]
    assert [own_number(attention[view.rows]) for view in tokens.views] == [1, 3]
    together = PruMerge("own", scope="image").select(tokens).kept
    assert len(together) == 1 + own_number(attention[~tokens.fixed])
    batch = PruMerge("own").select(VisualTokens.cat([tokens, tokens]))
    assert batch.kept.tolist() == [*kept.tolist(), *(41 + kept).tolist()]


def test_of_a_view_where_nothing_stands_out_one_token_is_left_and_of_none_none():
    tokens = replace(known(features(12)), views=(View(torch.arange(12)), View(torch.arange(0))))
    tokens.signals["attention"][:] = 0.5
    assert PruMerge("own").select(tokens).kept.tolist() == [0]


def test_where_a_number_is_its_own_it_is_said_by_whom():
    with pytest.raises(BadValue, match=r"and GPrune finds none; .*take PruMerge"):
        GPrune("own")
    with pytest.raises(
        BadValue, match=r"keep='all' is not a ratio; .*or 'own', the number that the method finds itself"
    ):
        PruMerge("all")
    with pytest.raises(BadValue, match="spatial=True spreads what they leave of a budget"):
        PruMerge("own", spatial=True)


def test_where_the_number_must_be_known_before_its_own_is_refused():
    for use in (
        lambda: kept_count(10, "own"),
        lambda: cost("llava-next-8b", [(336, 336)], 10, PruMerge("own")),
        lambda: Chain(PruMerge("own"), FastV(0.4)),
    ):
        with pytest.raises(BadValue, match="keep=own depends on what the picture shows"):
            use()


def test_its_own_number_is_written_and_read_as_it_is():
    assert parse_pruner("prumerge:neighbours=3", parse_keep("own")) == PruMerge("own", neighbours=3)
    assert PruMerge().keep == 0.3 and replace(PruMerge(), keep="own") == PruMerge("own") != PruMerge()


def test_what_nothing_attends_to_changes_nothing():
    """A removed token without attention has no weight."""
    tokens = known(features(10))
    attention = torch.zeros(10)
    attention[[2, 7]] = 1
    selection = PruMerge(2).select(replace(tokens, signals={**tokens.signals, "attention": attention}))
    assert selection.kept.tolist() == [2, 7]
    torch.testing.assert_close(selection.features, tokens.features[[2, 7]], rtol=0, atol=1e-6)
