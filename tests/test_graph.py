"""graph.py against the equations of the paper, written out in float64 with a softmax and a matrix power."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gprune.graph import cosine_graph, initial_scores, propagate, representativeness


def reference(
    features: Tensor,
    similarity: float = 0.5,
    iterations: int = 5,
    temperature: float = 0.03,
    init: str = "norm",
) -> tuple[Tensor, Tensor]:
    """S(t) and D of one view [N, d], entry by entry; a zero token has no edge but its own."""
    rows = [[float(value) for value in row] for row in features.double()]
    norms = [math.sqrt(sum(value * value for value in row)) for row in rows]
    n = len(rows)
    transition = torch.zeros(n, n, dtype=torch.float64)
    degrees = []
    for i in range(n):
        cosine = {i: 1.0}
        for j in range(n):
            if i != j and norms[i] and norms[j]:
                cosine[j] = sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / (norms[i] * norms[j])
        edges = [j for j in sorted(cosine) if j == i or cosine[j] >= similarity]
        logits = torch.tensor([cosine[j] for j in edges], dtype=torch.float64) / temperature
        transition[i, edges] = logits.softmax(0)
        degrees.append(len(edges))
    start = torch.tensor(norms if init == "norm" else [1.0] * n, dtype=torch.float64)
    return start @ torch.linalg.matrix_power(transition, iterations), torch.tensor(degrees)


def rounding(iterations: int = 5, temperature: float = 0.03) -> float:
    """Relative error float32 cosines allow: a step divides exp(cosine / temperature) by a sum of such."""
    return 1e-6 + 2 * iterations * torch.finfo(torch.float32).eps / temperature


def distance_to_threshold(features: Tensor, similarity: float) -> float:
    """How far the cosine nearest to the threshold is from it: below rounding, an edge is anyone's guess."""
    directions = torch.nn.functional.normalize(features.double(), dim=-1)
    pairs = (directions @ directions.T)[~torch.eye(len(features), dtype=torch.bool)]
    return float((pairs - similarity).abs().min()) if len(pairs) else math.inf


def gaussian(n: int, d: int, seed: int, shared: float = 1.0) -> Tensor:
    """Random tokens around a common direction, so that cosines fall on both sides of 0.5."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) + shared * torch.randn(d, generator=generator)


def clustered(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 16, generator=generator)
    members = torch.randint(4, (40,), generator=generator)
    return centres[members] + 0.3 * torch.randn(40, 16, generator=generator)


CASES = {
    "random": gaussian(48, 24, seed=0),
    "clustered": clustered(seed=1),
    "duplicates": gaussian(12, 8, seed=2).repeat(3, 1),
    "orthogonal": torch.diag(torch.arange(1.0, 10.0)),
    "opposite": torch.tensor([[1.0, 2.0], [-1.0, -2.0], [3.0, 6.0]]),
    "all equal": torch.ones(20, 5) * 0.37,
    "zero tokens": torch.cat([gaussian(9, 6, seed=3), torch.zeros(3, 6)]),
    "all zero": torch.zeros(7, 4),
    "one token": torch.tensor([[3.0, 4.0]]),
    "one zero token": torch.zeros(1, 3),
}


SETTINGS: list[dict] = [
    {},
    {"iterations": 0},
    {"iterations": 1},
    {"iterations": 50},
    {"init": "ones"},
    {"similarity": 0.9},
    {"similarity": -1.0},
    {"temperature": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_scores_and_degrees_are_those_of_the_equations(case, settings):
    scores, degrees = representativeness(CASES[case][None], **settings)
    flow, expected_degrees = reference(CASES[case], **settings)
    assert degrees[0].tolist() == expected_degrees.tolist()
    rtol = rounding(settings.get("iterations", 5), settings.get("temperature", 0.03))
    torch.testing.assert_close(scores[0].double(), flow / expected_degrees, rtol=rtol, atol=0)


@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
def test_propagate_gives_the_scores_after_t_steps(iterations):
    features = CASES["clustered"]
    flow = propagate(initial_scores(features[None]), cosine_graph(features[None]).weights, iterations)
    expected, _ = reference(features, iterations=iterations)
    torch.testing.assert_close(flow[0].double(), expected, rtol=rounding(iterations), atol=0)


def test_rows_of_the_weights_over_their_sums_are_the_softmax_over_edges():
    features = CASES["random"]
    weights = cosine_graph(features[None]).weights[0]
    directions = torch.nn.functional.normalize(features.double(), dim=-1)
    cosine = directions @ directions.T
    softmax = (cosine / 0.03).masked_fill(cosine < 0.5, -torch.inf).softmax(-1)
    torch.testing.assert_close((weights / weights.sum(-1, keepdim=True)).double(), softmax, rtol=rounding(1), atol=0)
    assert 0.05 < (weights > 0).float().mean() < 0.95


def test_propagation_moves_scores_and_loses_none():
    features = gaussian(30, 12, seed=4)[None]
    start = initial_scores(features)
    for iterations in (1, 5, 50):
        flow = propagate(start, cosine_graph(features).weights, iterations)
        assert not torch.allclose(flow, start)
        torch.testing.assert_close(flow.sum(), start.sum())


def test_a_batch_is_its_views_one_by_one():
    features = torch.stack([gaussian(25, 10, seed) for seed in range(4)])
    scores, degrees = representativeness(features)
    for view, score, degree in zip(features, scores, degrees, strict=True):
        alone_score, alone_degree = representativeness(view[None])
        assert torch.equal(degree, alone_degree[0])
        torch.testing.assert_close(score, alone_score[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_is_scored_in_float32(dtype):
    features = CASES["random"].to(dtype)[None]
    scores, degrees = representativeness(features)
    expected_scores, expected_degrees = representativeness(features.float())
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected_scores)
    assert torch.equal(degrees, expected_degrees)


def test_float16_norms_that_overflow_float16_are_right():
    scores, _ = representativeness(torch.full((1, 1, 16), 6e4, dtype=torch.float16))
    torch.testing.assert_close(scores.item(), 4 * 6e4, rtol=1e-6, atol=0)


def test_autocast_changes_nothing():
    features = CASES["random"][None]
    expected, _ = representativeness(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, _ = representativeness(features)
    assert torch.equal(scores, expected)


def test_the_input_is_left_alone():
    features = CASES["random"].clone()[None]
    representativeness(features)
    assert torch.equal(features[0], CASES["random"])


def test_a_cosine_of_exactly_the_threshold_is_an_edge():
    features = torch.tensor([[[1.0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]]])
    assert cosine_graph(features, similarity=0.5).degrees.tolist() == [[2, 2]]
    assert cosine_graph(features, similarity=0.5 + 1e-6).degrees.tolist() == [[1, 1]]


@pytest.mark.parametrize("similarity", [-1.0, 0.0, 0.5, 1.0])
def test_every_token_has_its_own_edge_and_a_zero_token_no_other(similarity):
    features = torch.cat([gaussian(6, 5, seed=5), torch.zeros(2, 5)])[None]
    graph = cosine_graph(features, similarity)
    assert torch.equal(graph.weights[0].diagonal(), torch.ones(8))
    assert graph.degrees[0, 6:].tolist() == [1, 1]
    assert graph.degrees[0, :6].max() <= 6


def test_a_tiny_temperature_does_not_overflow():
    scores, _ = representativeness(CASES["duplicates"][None], temperature=1e-9)
    assert scores.isfinite().all()


views = st.builds(gaussian, st.integers(1, 24), st.integers(2, 12), st.integers(0, 10_000), st.floats(0, 2))


@settings(max_examples=50)
@given(views, st.integers(0, 10_000))
def test_permuting_tokens_permutes_scores(features, seed):
    assume(distance_to_threshold(features, 0.5) > 1e-6)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    scores, degrees = representativeness(features[None])
    permuted_scores, permuted_degrees = representativeness(features[order][None])
    assert torch.equal(permuted_degrees[0], degrees[0, order])
    torch.testing.assert_close(permuted_scores[0], scores[0, order], rtol=rounding(), atol=0)


@settings(max_examples=50)
@given(views, st.integers(0, 10_000))
def test_edges_do_not_depend_on_the_length_of_tokens(features, seed):
    assume(distance_to_threshold(features, 0.5) > 1e-6)
    scale = torch.rand(len(features), 1, generator=torch.Generator().manual_seed(seed)) * 100 + 1e-3
    graph, scaled = cosine_graph(features[None]), cosine_graph((scale * features)[None])
    assert torch.equal(scaled.degrees, graph.degrees)
    torch.testing.assert_close(scaled.weights, graph.weights, rtol=rounding(2), atol=0)


@settings(max_examples=50)
@given(views, st.floats(-0.9, 0.95), st.integers(0, 8), st.sampled_from(["norm", "ones"]))
def test_random_views_follow_the_equations(features, similarity, iterations, init):
    assume(distance_to_threshold(features, similarity) > 1e-6)
    scores, degrees = representativeness(features[None], similarity, iterations, init=init)
    flow, expected_degrees = reference(features, similarity, iterations, init=init)
    assert degrees[0].tolist() == expected_degrees.tolist()
    torch.testing.assert_close(scores[0].double(), flow / expected_degrees, rtol=rounding(iterations), atol=0)
