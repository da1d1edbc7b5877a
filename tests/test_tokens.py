"""VisualTokens, views, and the budget."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune import View, VisualTokens, kept_count

sizes = st.lists(st.integers(0, 3000), min_size=1, max_size=6)
ratios = st.floats(0, 1, exclude_min=True)


def llava_next_like(base: int = 4, grid: tuple[int, int] = (2, 3)) -> VisualTokens:
    """One image: a base view, and a grid whose rows each end in a fixed newline row."""
    rows, columns = grid
    newlines = base + torch.arange(rows) * (columns + 1) + columns
    count = base + rows * (columns + 1)
    in_grid = torch.tensor([i for i in range(base, count) if i not in newlines.tolist()])
    views = (View(torch.arange(base), (2, base // 2)), View(in_grid, grid))
    return VisualTokens(torch.arange(count * 2.0).reshape(count, 2), views, (count,))


# --- VisualTokens ---


def test_of_is_one_image_with_one_view_and_nothing_fixed():
    tokens = VisualTokens.of(torch.zeros(6, 2), grid=(2, 3))
    assert tokens.sizes == (6,)
    assert tokens.views[0].rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert tokens.views[0].grid == (2, 3)
    assert not tokens.fixed.any()


def test_rows_in_no_view_are_fixed():
    assert llava_next_like().fixed.nonzero().flatten().tolist() == [7, 11]


def test_cat_shifts_rows_and_images():
    one, two = llava_next_like(), VisualTokens.of(torch.ones(3, 2))
    batch = VisualTokens.cat([two, VisualTokens.cat([one, two])])
    assert batch.sizes == (3, 12, 3)
    assert [view.image for view in batch.views] == [0, 1, 1, 2]
    assert torch.equal(batch.features[batch.views[2].rows], one.features[one.views[1].rows])
    assert batch.views[3].rows.tolist() == [15, 16, 17]
    assert batch.fixed.nonzero().flatten().tolist() == [10, 14]


def test_per_image_merges_the_views_of_an_image_and_leaves_fixed_rows_fixed():
    batch = VisualTokens.cat([llava_next_like(), VisualTokens.of(torch.ones(4, 2), grid=(2, 2))])
    merged = batch.per_image()
    assert [view.image for view in merged.views] == [0, 1]
    assert merged.views[0].rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert [view.grid for view in merged.views] == [None, (2, 2)]
    assert torch.equal(merged.fixed, batch.fixed)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: View(torch.arange(5), (2, 3)), ValueError, "grid=(2, 3) holds 6 tokens but the view has 5"),
        (lambda: VisualTokens.of(torch.zeros(2, 3, 4)), ValueError, "shape (2, 3, 4)"),
        (lambda: VisualTokens.of(torch.zeros(3, 0)), ValueError, "shape (3, 0)"),
        (lambda: VisualTokens.of(torch.zeros(())), ValueError, "shape ()"),
        (lambda: VisualTokens.of(torch.zeros(2, 3, dtype=torch.int64)), TypeError, "torch.int64"),
        (
            lambda: VisualTokens(torch.zeros(4, 2), (), (3,)),
            ValueError,
            "adds up to 3 tokens but features has 4",
        ),
    ],
)
def test_inconsistent_tokens_are_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()


# --- kept_count ---


@pytest.mark.parametrize(
    ("n", "keep", "k"),
    [
        (576, 0.3, 172),
        (576, 1.0, 576),
        (576, 0.5, 288),
        (10, 0.7, 7),  # 10 * 0.7 is below 7 in binary
        (100, 0.29, 29),  # and 100 * 0.29 below 29
        (3, 0.1, 1),
        (0, 0.5, 0),
        (0, 5, 0),
        (576, 64, 64),
        (576, 1, 1),
        (10, 64, 10),
        ([576, 1200], 0.1, [57, 120]),
        ([576, 1200], 148, [48, 100]),
        ([4, 4, 4], 4, [2, 1, 1]),
        ([100, 0, 1], 2, [2, 0, 0]),
        ([0, 0], 3, [0, 0]),
        ([], 3, []),
    ],
)
def test_kept_count_examples(n, keep, k):
    assert kept_count(n, keep) == k


@given(sizes, ratios)
def test_a_ratio_applies_to_each_view(n, keep):
    assert kept_count(n, keep) == [max(1, math.floor(size * keep + 1e-6)) if size else 0 for size in n]
    assert kept_count(n, keep) == [kept_count(size, keep) for size in n]
    assert all(min(1, size) <= k <= size for k, size in zip(kept_count(n, keep), n, strict=True))


@given(sizes, st.integers(1, 5000))
def test_a_count_is_shared_exactly_and_in_proportion(n, keep):
    counts, total = kept_count(n, keep), sum(n)
    assert sum(counts) == min(keep, total)
    for k, size in zip(counts, n, strict=True):
        assert 0 <= k <= size
        assert abs(k * total - min(keep, total) * size) < max(total, 1)  # less than one token from the exact share


@given(st.integers(0, 3000), ratios, ratios)
def test_a_larger_ratio_never_keeps_fewer(n, one, other):
    low, high = sorted((one, other))
    assert kept_count(n, low) <= kept_count(n, high)


@given(sizes, st.integers(1, 5000))
def test_a_larger_count_never_keeps_fewer_in_all(n, keep):
    assert sum(kept_count(n, keep)) <= sum(kept_count(n, keep + 1))


@pytest.mark.parametrize("keep", [0, -1, 0.0, -0.3, 1.0001, 30.0, math.nan, math.inf, -math.inf])
def test_a_keep_out_of_range_is_a_value_error(keep):
    with pytest.raises(ValueError, match=rf"keep={re.escape(str(keep))}.*ratio.*number of tokens.*pass"):
        kept_count(10, keep)


@pytest.mark.parametrize("keep", [True, False, "0.3", None, [0.3], torch.tensor(0.3)])
def test_a_keep_of_another_type_is_a_type_error(keep):
    with pytest.raises(TypeError, match=rf"{type(keep).__name__}.*ratio.*number of tokens.*pass"):
        kept_count(10, keep)


def test_a_percentage_given_as_a_float_is_answered_with_the_count_it_may_mean():
    with pytest.raises(ValueError, match=r"pass 30$"):
        kept_count(100, 30.0)


@pytest.mark.parametrize("keep", [0.5, 3])
def test_a_negative_size_is_refused(keep):
    with pytest.raises(ValueError, match="negative size"):
        kept_count([4, -1], keep)
