"""The graph by blocks against the equations in float64, whatever is kept of it in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gprune.graph import initial_scores, rank_views, representativeness
from gprune.kernels import blocks

EVERYTHING = 2**40


def features_of(count: int, width: int = 24, clusters: int = 7, noise: float = 0.6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, width, generator=generator)
    return centres[torch.randint(clusters, (count,), generator=generator)] + noise * torch.randn(
        count, width, generator=generator
    )


def equations(
    features: Tensor, similarity: float, iterations: int, temperature: float, init: str = "norm"
) -> tuple[Tensor, Tensor]:
    """S(t) / D and D by Eq. 1-5, all pairs at once, in float64."""
    features = features.double()
    norms = features.norm(dim=1)
    cosine = (features @ features.T) / norms.outer(norms)
    edges = cosine.ge(similarity).fill_diagonal_(True)
    logits = cosine.nan_to_num().fill_diagonal_(1).div(temperature).masked_fill(~edges, -torch.inf)
    transition = logits.softmax(1)
    scores = norms if init == "norm" else torch.ones_like(norms)
    for _ in range(iterations):
        scores = scores @ transition
    return scores / edges.sum(1), edges.sum(1)


def by_blocks(features: Tensor, similarity: float, iterations: int, temperature: float, max_memory: int) -> Tensor:
    scores, degrees = blocks.representativeness(
        features, initial_scores(features), similarity, iterations, temperature, max_memory
    )
    wanted, edges = equations(features, similarity, iterations, temperature)
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
    by_blocks(features_of(count), similarity, iterations, temperature, max_memory)


@pytest.mark.parametrize("max_memory", [0, EVERYTHING])
def test_duplicates_and_zeros(max_memory: int) -> None:
    features = features_of(300)
    features[140:170] = features[3]
    features[200:260] = 0
    by_blocks(features, 0.5, 5, 0.03, max_memory)
    by_blocks(features[:1].expand(300, -1), 0.5, 5, 0.03, max_memory)


def test_what_is_kept_is_within_the_budget_and_of_the_smaller_form(monkeypatch: pytest.MonkeyPatch) -> None:
    features = features_of(600)
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
    features = features_of(sum(sizes), seed=seed)
    scores, degrees = rank_views(features, sizes, init=init, max_memory=max_memory)  # type: ignore[arg-type]
    for view, score, degree in zip(features.split(sizes), scores.split(sizes), degrees.split(sizes), strict=True):
        wanted, edges = equations(view, 0.5, 5, 0.03, init)
        assert torch.equal(degree, edges)
        torch.testing.assert_close(score.double(), wanted, rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_is_ranked_in_float32(dtype: torch.dtype) -> None:
    features = features_of(600).to(dtype)
    scores, _ = rank_views(features, [600])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, rank_views(features.float(), [600])[0], rtol=0, atol=0)


def test_autocast_changes_nothing() -> None:
    features = features_of(600)
    scores, _ = rank_views(features, [600])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rank_views(features, [600])[0], scores)


def test_small_views_and_blocks_keep_the_same_tokens() -> None:
    features = features_of(512, width=64)
    together = representativeness(features[None])[0][0]
    apart = by_blocks(features, 0.5, 5, 0.03, EVERYTHING)
    assert torch.equal(together.topk(150).indices.sort().values, apart.topk(150).indices.sort().values)


@pytest.mark.parametrize("count", [0, 1, 2, 127, 128, 129, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_is_the_product(count: int, dtype: torch.dtype) -> None:
    vectors = features_of(count).to(dtype)
    torch.testing.assert_close(blocks.gram(vectors), vectors @ vectors.T)


@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 400])
def test_nearest_is_the_largest_product_with_another(count: int) -> None:
    vectors = features_of(count)
    products = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    torch.testing.assert_close(blocks.nearest(vectors), products.amax(1))
