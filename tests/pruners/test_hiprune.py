"""HiPrune: anchors of the middle layer, their neighbours on the grid, registers of the last layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from towered import features, known

from gprune import ClsAttention, HiPrune, View, VisualTokens


def chosen(tokens: VisualTokens, rows: int, columns: int, alpha: float, k: int) -> list[int]:
    """The rule, a token at a time."""
    middle, last = (tokens.signals[name].tolist() for name in ("middle attention", "attention"))
    count = rows * columns
    anchors = sorted(range(count), key=lambda i: -middle[i])[: int(alpha * k + 1e-6)]
    buffers = set()
    for i in anchors:
        row, column = divmod(i, columns)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= r < rows and 0 <= c < columns:
                buffers.add(r * columns + c)
    kept = anchors + sorted(buffers - {*anchors}, key=lambda i: -middle[i])
    kept = kept[:k]
    registers = sorted(set(range(count)) - {*kept}, key=lambda i: -last[i])
    return sorted(kept + registers[: k - len(kept)])


def grid_of(rows: int, columns: int, seed: int) -> VisualTokens:
    count = rows * columns
    return known(features(count, seed=seed), seed, (View(torch.arange(count), (rows, columns)),))


@pytest.mark.parametrize("grid", [(6, 8), (1, 30), (30, 1), (5, 5)])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_equals_the_rule(grid, alpha, seed):
    tokens = grid_of(*grid, seed)
    for k in range(1, len(tokens.features) + 1):
        assert HiPrune(k, alpha=alpha).select(tokens).kept.tolist() == chosen(tokens, *grid, alpha, k)


def test_without_a_grid_neighbours_come_before_and_after():
    tokens = known(features(30))
    assert HiPrune(12, alpha=0.2).select(tokens).kept.tolist() == chosen(tokens, 1, 30, 0.2, 12)


def test_without_anchors_it_is_attention_alone():
    tokens = grid_of(6, 8, 0)
    assert torch.equal(HiPrune(0.3, alpha=0.0).select(tokens).kept, ClsAttention(0.3).select(tokens).kept)


def test_a_cross_around_the_anchor():
    tokens = grid_of(5, 5, 0)
    middle = (torch.arange(25) == 12).float()
    last = torch.arange(25.0)
    tokens = replace(tokens, signals={"middle attention": middle, "attention": last})
    assert HiPrune(7, alpha=0.15).select(tokens).kept.tolist() == [7, 11, 12, 13, 17, 23, 24]
