"""Foreground and Background: tokens by the share of their area in a mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from towered import features

from gprune import Background, Foreground, View, VisualTokens
from gprune.errors import BadValue
from gprune.pruners.masked import coverage

masks = st.integers(1, 9).flatmap(lambda h: st.integers(1, 9).flatmap(lambda w: arrays(bool, (h, w))))


def image(rows: int, columns: int) -> VisualTokens:
    return VisualTokens.of(features(rows * columns), (rows, columns))


def shares(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Of the area of each cell: every pixel cut into rows x columns parts, so that each is in one cell."""
    height, width = mask.shape
    fine = np.kron(mask, np.ones((rows, columns)))
    return np.array(
        [
            [fine[r * height : (r + 1) * height, c * width : (c + 1) * width].mean() for c in range(columns)]
            for r in range(rows)
        ]
    )


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(1, 6), st.integers(1, 6))
def test_coverage_is_exact(mask, rows, columns):
    found = coverage(torch.tensor(mask), (rows, columns))
    np.testing.assert_allclose(found.view(rows, columns).numpy(), shares(mask, rows, columns), atol=1e-12)
    assert found.max() <= 1 and found.min() >= 0


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(1, 6), st.integers(1, 6), st.data())
def test_no_token_dropped_is_covered_more_than_one_kept(mask, rows, columns, data):
    k = data.draw(st.integers(1, rows * columns))
    share = coverage(torch.tensor(mask), (rows, columns))
    for method, order in ((Foreground, share), (Background, -share)):
        kept = method(k, mask=mask).select(image(rows, columns)).kept
        assert len(kept) == k
        dropped = torch.ones_like(share, dtype=torch.bool)
        dropped[kept] = False
        assert not dropped.any() or order[kept].min() >= order[dropped].max()


def test_inside_first_then_outside():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 2:6] = True
    inside = [5, 6, 9, 10]
    assert Foreground(4, mask=mask).select(image(4, 4)).kept.tolist() == inside
    assert Background(12, mask=mask).select(image(4, 4)).kept.tolist() == sorted(set(range(16)) - set(inside))
    assert set(inside) < set(Foreground(7, mask=mask).select(image(4, 4)).kept.tolist())


def test_alike_tokens_are_kept_evenly():
    everything, nothing = torch.ones(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    for pruner in (Foreground(4, mask=everything), Foreground(4, mask=nothing), Background(4, mask=nothing)):
        assert pruner.select(image(4, 4)).kept.tolist() == [2, 6, 10, 14]


def test_the_mask_is_stretched_over_every_view():
    tokens = features(4 + 8)
    views = (View(torch.arange(4), (2, 2)), View(torch.arange(4, 12), (2, 4)))
    mask = torch.tensor([[True, False], [False, False]])
    kept = Foreground(0.25, mask=mask).select(VisualTokens(tokens, views, (12,))).kept
    assert kept.tolist() == [0, 4, 5]


@pytest.mark.parametrize("mask", [[[False, True], [True, False]], ~np.eye(2, dtype=bool), ~torch.eye(2).bool()])
def test_kinds_of_masks(mask):
    assert Foreground(2, mask=mask).select(image(2, 2)).kept.tolist() == [1, 2]
    tokens = replace(image(2, 2), masks=(mask,))
    for method in (Foreground(2), Foreground(2, mask=~torch.as_tensor(mask))):  # the picture's own comes first
        assert method.select(tokens).kept.tolist() == [1, 2]


def test_every_picture_has_its_own_mask():
    top = torch.tensor([[True, True], [False, False]])
    masked = [replace(image(2, 2), masks=(mask,)) for mask in (top, ~top, None)]
    kept = Foreground(2, mask=top.T).select(VisualTokens.cat([*masked, image(2, 2)])).kept
    assert kept.tolist() == [0, 1, 6, 7, 8, 10, 12, 14]
    with pytest.raises(BadValue, match="has no mask of image 2"):
        Foreground(2).select(VisualTokens.cat(masked))
    with pytest.raises(BadValue, match="masks has 2 entries for 1 images"):
        replace(image(2, 2), masks=(top, top))


@pytest.mark.parametrize("method", [Foreground, Background])
def test_what_is_no_mask(method):
    with pytest.raises(BadValue, match=f"{method.__name__} has no mask of image 0"):
        method(0.5).select(image(2, 2))
    wrong = (torch.zeros(4, 4), torch.zeros(3, 4, 4).bool(), np.zeros((0, 4), bool), [torch.ones(2, 2) > 0] * 2, "m")
    for mask in wrong:
        with pytest.raises(BadValue, match="accepted is bool"):
            method(0.5, mask=mask).select(image(2, 2))


def test_tokens_without_a_place():
    with pytest.raises(ValueError, match="has no grid"):
        Foreground(0.5, mask=torch.ones(2, 2).bool()).select(features(4))
