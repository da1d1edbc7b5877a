"""The graph by blocks against the equations in float64, whatever is kept of it in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from equations import clustered, equations
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gprune.graph import initial_scores, rank_views, representativeness
from gprune.kernels import blocks

EVERYTHING = 2**40


def by_blocks(features: Tensor, similarity: float, iterations: int, temperature: float, max_memory: int) -> Tensor:
    scores, degrees = blocks.representativeness(
        features, initial_scores(features), similarity, iterations, temperature, max_memory
    )
    wanted, edges = equations(features.double(), similarity, iterations, temperature)
    assert torch.equal(degrees, edges)
    torch.testing.assert_close(scores.double(), wanted, rtol=2e-5, atol=0)
    return scores


@pytest.mark.parametrize("max_memory", [0, 40_000, 150_000, EVERYTHING])
@pytest.mark.parametrize(
    "similarity, iterations, temperature", [(0.5, 5, 0.03), (-1, 2, 0.1), (0.9, 1, 0.03), (0.3, 0, 1)]
)
@pytest.mark.parametrize("count", [1, 127, 128, 129, 300, 513])
def test_scores_are_those_of_the_equations(
    count: int, similarity: float, iterations: int, temperature: float, max_memory: int
) -> None:
    by_blocks(clustered(count), similarity, iterations, temperature, max_memory)


@pytest.mark.parametrize("max_memory", [0, EVERYTHING])
def test_duplicates_and_zeros(max_memory: int) -> None:
    features = clustered(300)
    features[140:170] = features[3]
    features[200:260] = 0
    by_blocks(features, 0.5, 5, 0.03, max_memory)
    by_blocks(features[:1].expand(300, -1), 0.5, 5, 0.03, max_memory)


def test_what_is_kept_is_within_the_budget_and_of_the_smaller_form(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clustered(600)
    for similarity, form in ((0.5, blocks._Listed), (-1.0, blocks._Dense)):
        for budget in (0, 10_000, 400_000, EVERYTHING):
            kept = [each for each in blocks.BlockedGraph(features, similarity, 0.03, budget)._kept if each]
            used = sum(part.nbytes for each in kept for part in each if isinstance(part, Tensor))
            assert used <= budget
            assert all(isinstance(each, form) for each in kept)
            assert len(kept) == 5 or budget < EVERYTHING


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from([0, 1, 2, 5, 5, 5, 30, 600]), max_size=6),
    st.sampled_from([0, 3000, EVERYTHING]),
    st.sampled_from(["norm", "ones"]),
    st.integers(0, 99),
)
def test_views_of_any_sizes_exchange_nothing(sizes: list[int], max_memory: int, init: str, seed: int) -> None:
    features = clustered(sum(sizes), seed=seed)
    scores, degrees = rank_views(features, sizes, init=init, max_memory=max_memory)  # type: ignore[arg-type]
    for view, score, degree in zip(features.split(sizes), scores.split(sizes), degrees.split(sizes), strict=True):
        wanted, edges = equations(view.double(), init=init)
        assert torch.equal(degree, edges)
        torch.testing.assert_close(score.double(), wanted, rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_is_ranked_in_float32(dtype: torch.dtype) -> None:
    features = clustered(600).to(dtype)
    scores, _ = rank_views(features, [600])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, rank_views(features.float(), [600])[0], rtol=0, atol=0)


def test_autocast_changes_nothing() -> None:
    features = clustered(600)
    scores, _ = rank_views(features, [600])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rank_views(features, [600])[0], scores)


def test_small_views_and_blocks_keep_the_same_tokens() -> None:
    features = clustered(512, width=64)
    together = representativeness(features[None])[0][0]
    apart = by_blocks(features, 0.5, 5, 0.03, EVERYTHING)
    assert torch.equal(together.topk(150).indices.sort().values, apart.topk(150).indices.sort().values)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read as Linux tells it")
def test_a_large_view_needs_no_memory_for_all_pairs() -> None:
    count, budget = 12_000, 2**25
    features = clustered(count, clusters=200)
    rank_views(features[:600], [600])  # what libraries set up once is no matter
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    rank_views(features, [count], iterations=1, max_memory=budget)
    assert resident("VmHWM") - before < 4 * count * count / 2


def resident(field: str) -> int:
    """Bytes of this process, now (VmRSS) or at their highest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
