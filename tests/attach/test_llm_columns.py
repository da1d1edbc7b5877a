"""Columns that are left, against the same thing a column at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.attach.llm_columns import Left, narrow_mask, take

CPU = torch.device("cpu")


def some(rows: int, columns: int, seed: int) -> torch.Tensor:
    """bool [rows, columns], one True in each row at least."""
    kept = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    kept[:, -1] = True
    return kept


SIZES = st.integers(1, 6)
SEEDS = st.integers(0, 2**20)


@given(SIZES, SIZES, SEEDS)
def test_what_is_left_in_order_and_padded_on_the_left(rows: int, columns: int, seed: int) -> None:
    kept = some(rows, columns, seed)
    left = Left.of(kept)
    for row in range(rows):
        own = kept[row].nonzero().squeeze(1)
        assert left.index[row, -len(own) :].tolist() == own.tolist()
        assert left.valid[row].tolist() == [False] * (left.index.shape[1] - len(own)) + [True] * len(own)
        assert len(left.index[row].unique()) == left.index.shape[1]
    values = torch.randn(rows, columns, 2)
    assert torch.equal(left.spread(take(values, left.index, -3, -2)), values * kept[..., None])
    assert torch.equal(left.spread(take(values[..., 0], left.index, -2, -1)), values[..., 0] * kept)


@given(SIZES, SIZES, st.integers(0, 3), SIZES, SEEDS, st.sampled_from(["none", "bool", "float"]))
def test_masks(rows: int, cached: int, between: int, queries: int, seed: int, kind: str) -> None:
    before, after = some(rows, cached, seed), some(rows, queries, seed + 1)
    start = cached + between
    causal = torch.ones(queries, start + queries).tril(start).bool().expand(rows, 1, -1, -1)
    padded = causal & some(rows, start + queries, seed + 2)[:, None, None]
    full = {"none": None, "bool": padded, "float": torch.zeros(padded.shape).masked_fill(~padded, -1e30)}[kind]
    whole, new = Left.of(before), Left.of(after)
    mask = narrow_mask(full, whole, new, start, CPU)
    seen = causal if kind == "none" else padded
    for row in range(rows):
        columns = [
            *before[row].nonzero().squeeze(1).tolist(),
            *range(cached, start),
            *(start + after[row].nonzero().squeeze(1)).tolist(),
        ]
        valid = whole.then(start, new).valid[row]
        own = after[row].nonzero().squeeze(1)
        expected = seen[row, 0][own][:, columns]
        expected[torch.arange(len(own)), torch.arange(len(columns) - len(own), len(columns))] = True
        if mask is None:
            assert valid.all()
            continue
        visible = mask[row, 0] if mask.dtype == torch.bool else mask[row, 0] == 0
        assert torch.equal(visible[-len(own) :][:, valid], expected)
        assert not (visible & ~valid)[-len(own) :].any()
        assert visible.any(dim=1).all()  # pads too


@given(SIZES, st.integers(0, 4), st.integers(0, 4), SEEDS)
def test_cropping(columns: int, tail: int, cut: int, seed: int) -> None:
    kept = torch.cat([some(2, columns, seed), torch.ones(2, tail, dtype=torch.bool)], 1)
    kept[:, columns - 1] = False
    if not kept.any():
        return
    left = Left.of(kept)
    if cut > tail:
        with pytest.raises(ValueError, match="cropped"):
            left.cropped(columns + tail - cut)
        return
    cropped = left.cropped(columns + tail - cut)
    expected = Left.of(kept[:, : columns + tail - cut])
    assert cropped.columns == columns + tail - cut
    for row in range(2):
        assert torch.equal(cropped.index[row][cropped.valid[row]], expected.index[row][expected.valid[row]])
    assert torch.equal(left.cropped(columns + tail + 3).index, left.index)
