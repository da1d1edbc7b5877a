"""Uniform: exactly k tokens, of every part of the grid its share, whatever the grid's shape."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gprune import Uniform, VisualTokens

GRIDS = [(8, 24), (16, 64), (24, 24)]


def kept(grid: tuple[int, int], k: int) -> Tensor:
    """bool [rows, columns]"""
    tokens = VisualTokens.of(torch.zeros(math.prod(grid), 1), grid)
    cells = torch.zeros(len(tokens.features), dtype=torch.bool)
    cells[Uniform(k).select(tokens).kept] = True
    return cells.view(grid)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_row_and_every_column_has_its_share_at_every_budget(grid):
    for k in range(1, math.prod(grid) + 1):
        cells = kept(grid, k)
        assert cells.sum() == k
        for dim, lines in enumerate(grid):
            assert (cells.sum(1 - dim) - k / lines).abs().max() < 4


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("grid", GRIDS)
def test_no_stripes_fall_into_step_with_it(grid, share):
    """It keeps of the stripes of any period no more and no less than a fair draw might, within two deviations."""
    k = int(share * math.prod(grid))
    cells = kept(grid, k)
    for lines in (cells.sum(1), cells.sum(0)):
        for period in range(2, len(lines) // 2 + 1):
            for first in range(period):
                expected = k * len(lines[first::period]) / len(lines)
                assert abs(int(lines[first::period].sum()) - expected) <= 2 * math.sqrt(expected) + 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_every_rectangle_has_its_share(rows, columns, data):
    k = data.draw(st.integers(1, rows * columns))
    cells = kept((rows, columns), k)
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    part = cells[top : data.draw(st.integers(top + 1, rows)), left : data.draw(st.integers(left + 1, columns))]
    assert abs(int(part.sum()) - part.numel() * k / cells.numel()) < 8


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_a_larger_budget_keeps_all_that_a_smaller_one_does(rows, columns, data):
    k = data.draw(st.integers(1, rows * columns))
    assert kept((rows, columns), k)[kept((rows, columns), max(1, k - 1))].all()


@settings(max_examples=60)
@given(st.integers(1, 600), st.data())
def test_without_a_grid_it_spaces_tokens_evenly(n, data):
    k = data.draw(st.integers(1, n))
    rows = Uniform(k).select(torch.zeros(n, 1)).kept
    if k > 1:
        assert rows.diff().max() - rows.diff().min() <= 1
    assert abs(int(rows[0]) - (n - 1 - int(rows[-1]))) <= 1


def test_one_token_lies_in_the_middle():
    assert kept((5, 5), 1).nonzero().tolist() == [[2, 2]]
