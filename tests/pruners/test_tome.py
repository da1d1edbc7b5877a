"""ToMe: what it merges is what the paper merges, into exactly as many averages as the budget says."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from bipartite import merge_once, merge_to
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from towered import clustered, features

from gprune import ToMe, View, VisualTokens, kept_count
from gprune.pruners import Selection
from gprune.pruners.tome import average, soft_matching, tokens_after_layers


def merged(tokens: VisualTokens | Tensor, keep: float) -> tuple[list[int], Tensor]:
    selection = ToMe(keep, "tokens").select(tokens)
    assert selection.features is not None
    return selection.kept.tolist(), selection.features


@pytest.mark.parametrize("make", [features, clustered])
@pytest.mark.parametrize("seed", range(3))
def test_every_round_is_that_of_the_paper(make, seed):
    tokens = make(25, seed=seed)
    for k in range(1, 26):
        rows, means = merge_to(tokens, k)
        kept, averages = merged(tokens, k)
        assert kept == rows.tolist()
        torch.testing.assert_close(averages, means, rtol=1e-5, atol=1e-6)


images = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), min_size=1, max_size=3)


@settings(max_examples=40)
@given(images, st.one_of(st.floats(0, 1, exclude_min=True), st.integers(1, 40)), st.integers(0, 100))
def test_views_are_merged_apart_to_exactly_k_and_fixed_rows_stay(sizes, keep, seed):
    """A fixed row stands after every view."""
    each = []
    for number, views in enumerate(sizes):
        starts = [sum(views[:i]) + i for i in range(len(views))]
        own = tuple(View(torch.arange(start, start + size)) for start, size in zip(starts, views, strict=True))
        count = sum(views) + len(views)
        each.append(VisualTokens(features(count, seed=seed + number), own, (count,)))
    tokens = VisualTokens.cat(each)
    kept, averages = merged(tokens, keep)
    expected = tokens.features.clone()
    rows = tokens.fixed
    counts = [k for views in sizes for k in kept_count(views, keep)]
    for view, k in zip(tokens.views, counts, strict=True):
        if k:
            own, means = merge_to(tokens.features[view.rows], k)
            rows[view.rows[own]] = True
            expected[view.rows[own]] = means
    assert kept == rows.nonzero().squeeze(1).tolist()
    torch.testing.assert_close(averages, expected[rows], rtol=1e-5, atol=1e-6)
    assert torch.equal(averages[tokens.fixed[rows]], tokens.features[tokens.fixed])


def test_a_view_with_no_share_of_the_budget_is_dropped():
    tokens = VisualTokens(features(5), (View(torch.arange(3)), View(torch.arange(3, 5))), (5,))
    kept, averages = merged(tokens, 1)
    assert kept == [1]
    torch.testing.assert_close(averages, tokens.features[:3].mean(0, keepdim=True), rtol=1e-5, atol=1e-6)


def test_one_token_is_the_mean_of_all():
    tokens = features(37)
    kept, averages = merged(tokens, 1)
    assert len(kept) == 1
    torch.testing.assert_close(averages, tokens.mean(0, keepdim=True), rtol=1e-5, atol=1e-6)


def test_copies_are_merged_first_and_into_the_lower_index():
    axes = torch.eye(4)[[0, 0, 1, 2, 0, 2, 3, 0]]  # tokens 0, 4 -> 1; 5 and 7 are in the other set than 3 and 6
    kept, averages = merged(axes, 6)
    assert kept == [1, 2, 3, 5, 6, 7]
    assert torch.equal(averages, axes[kept])
    kept, averages = merged(torch.ones(9, 4), 5)
    assert kept == [1, 3, 5, 7, 8]
    assert torch.equal(averages, torch.ones(5, 4))


def test_a_token_weighs_as_much_as_it_stands_for():
    """All are alike; the mean of 9 tokens comes out however they were grouped on the way."""
    tokens = torch.arange(1.0, 10).repeat(3, 1).T
    _, averages = merged(tokens, 1)
    torch.testing.assert_close(averages, torch.full((1, 3), 5.0))


@settings(max_examples=40)
@given(st.integers(2, 30), st.integers(0, 1000), st.data())
def test_one_step_is_that_of_the_paper_and_never_merges_the_class_token(n, seed, data):
    class_token = data.draw(st.booleans())
    merges = data.draw(st.integers(0, (n - class_token) // 2))
    tokens = torch.stack([features(n, seed=seed), features(n, seed=seed + 1)])
    sizes = torch.randint(1, 5, (2, n, 1), generator=torch.Generator().manual_seed(seed)).float()
    metric = tokens.flip(-1) ** 3
    matching = soft_matching(metric, merges, class_token)
    averages, total = average(tokens, sizes, matching)
    left = matching.survivors(torch.arange(n).expand(2, -1)[..., None])[..., 0]
    for row in range(2):
        made = merge_once(metric[row], merges, class_token)
        assert left[row].tolist() == [parts[0] for parts in made]
        assert [0] in made or not class_token
        weights = torch.stack([sizes[row, parts].sum(0) for parts in made])
        sums = torch.stack([(sizes[row, parts] * tokens[row, parts]).sum(0) for parts in made])
        assert torch.equal(total[row], weights)
        torch.testing.assert_close(averages[row], sums / weights, rtol=1e-5, atol=1e-5)


@settings(max_examples=200)
@given(st.integers(1, 800), st.integers(1, 800), st.integers(0, 30))
def test_the_schedule_ends_at_k_and_merges_at_most_half_at_a_time(n, k, layers):
    k = min(n, k)
    if n > k * 2**layers:
        with pytest.raises(ValueError, match=f"{k} of {n} tokens.*{math.ceil(n / 2**layers)} or more"):
            tokens_after_layers(n, k, layers)
        tokens_after_layers(n, math.ceil(n / 2**layers), layers)
        return
    counts = [n, *tokens_after_layers(n, k, layers)]
    assert len(counts) == layers + 1
    assert counts[-1] == k
    merges = [before - after for before, after in pairwise(counts)]
    assert all(0 <= r <= before // 2 for r, before in zip(merges, counts[:-1], strict=True))
    if all(r < before // 2 for r, before in zip(merges, counts[:-1], strict=True)):
        assert max(merges, default=0) - min(merges, default=0) <= 1


def test_the_schedule_of_llava():
    """CLIP-L at 336 pixels, its last layer but one, a third of 576 tokens: 16 or 17 a layer."""
    assert tokens_after_layers(576, 192, 23)[:3] == [560, 544, 528]
    assert tokens_after_layers(576, 192, 23)[-2:] == [209, 192]


def test_several_views_share_a_budget_per_image():
    tokens = VisualTokens(features(20), (View(torch.arange(16), (4, 4)), View(torch.arange(16, 20))), (20,))
    rows, means = merge_to(tokens.features, 5)
    selection = ToMe(5, "tokens", scope="image").select(tokens)
    assert torch.equal(selection.kept, rows)
    torch.testing.assert_close(selection.features, means, rtol=1e-5, atol=1e-6)


def left_by_a_tower(counts: list[int]) -> VisualTokens:
    """Images of 10 tokens of which only the last so many are left."""
    images = []
    for count in counts:
        own = features(10)
        own[: 10 - count] = torch.nan
        images.append(VisualTokens.of(own))
    return VisualTokens.cat(images)


def test_what_the_tower_merged_away_is_dropped():
    selection: Selection = ToMe(0.4).select(left_by_a_tower([4, 4]))
    assert selection.kept.tolist() == [6, 7, 8, 9, 16, 17, 18, 19]
    assert selection.features is None


@pytest.mark.parametrize("counts", [[10], [4, 10], [4, 5]])
def test_features_that_no_tower_merged_are_refused(counts):
    message = rf"image {len(counts) - 1} has {counts[-1]} of its 10 .*leaves 4 of them.*attached.*where=\"tokens\""
    with pytest.raises(ValueError, match=message):
        ToMe(0.4).select(left_by_a_tower(counts))
    with pytest.raises(ValueError, match="10 of its 10"):
        ToMe(0.4).select(features(10))
    assert len(ToMe(1.0).select(features(10)).kept) == 10


def test_the_tower_merges_no_tokens_of_different_views():
    with pytest.raises(ValueError, match=r'scope="image" with ToMe\(where="vision"\).*"view".*where="tokens"'):
        ToMe(scope="image")
