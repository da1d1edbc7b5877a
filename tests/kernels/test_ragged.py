"""The best of every view in one go, against a loop over the views."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.kernels.ragged import owners_and_places, top_per_view


def loop(scores: list[float], sizes: list[int], counts: list[int]) -> list[int]:
    """Rank each view by hand: highest score first, then lowest index."""
    kept, start = [], 0
    for size, count in zip(sizes, counts, strict=True):
        view = range(start, start + size)
        kept += sorted(sorted(view, key=lambda i: (-scores[i], i))[:count])
        start += size
    return kept


@st.composite
def ragged(draw: st.DrawFn) -> tuple[list[float], list[int], list[int]]:
    """Views of 0 to 12 tokens whose scores often tie, and a budget for each."""
    sizes = draw(st.lists(st.integers(0, 12), max_size=6))
    score = st.sampled_from([-torch.inf, -1.0, -0.0, 0.0, 0.5, 2.0, torch.inf]) | st.floats(-1, 1, width=32)
    scores = draw(st.lists(score, min_size=sum(sizes), max_size=sum(sizes)))
    return scores, sizes, [draw(st.integers(0, size)) for size in sizes]


@given(ragged())
def test_keeps_what_a_loop_over_the_views_keeps(case):
    scores, sizes, counts = case
    kept = top_per_view(torch.tensor(scores), sizes, counts)
    assert kept.dtype == torch.int64
    assert kept.tolist() == loop(scores, sizes, counts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_ties_go_to_the_lower_index_in_large_views_of_any_dtype(dtype):
    scores = torch.randint(5, (5000,), generator=torch.Generator().manual_seed(0)).to(dtype)
    sizes, counts = [3000, 0, 1, 1999], [700, 0, 1, 1998]
    assert top_per_view(scores, sizes, counts).tolist() == loop(scores.tolist(), sizes, counts)


def test_runs_says_whose_each_element_is_and_which():
    owner, position = owners_and_places(torch.tensor([2, 0, 3]), 5)
    assert owner.tolist() == [0, 0, 2, 2, 2]
    assert position.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("sizes", "counts", "told"),
    [
        ([2, 2], [1, 1], "adds up to 4 but there are 5 scores"),
        ([2, 3], [1], "does not fit"),
        ([2, 3], [3, 1], "does not fit"),
        ([2, 3], [-1, 1], "does not fit"),
    ],
)
def test_budgets_that_do_not_fit_are_refused(sizes, counts, told):
    with pytest.raises(ValueError, match=told):
        top_per_view(torch.zeros(5), sizes, counts)


def test_compiles_without_a_graph_break():
    scores = torch.rand(30, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(top_per_view, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(scores, [10, 20], [3, 7]), top_per_view(scores, [10, 20], [3, 7]))
