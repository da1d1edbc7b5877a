"""ApET: the tokens with the largest error of least squares, and means of what is merged into them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from towered import clustered, cosines, features, zeros_among

from gprune import ApET


def errors(x: np.ndarray, count: int) -> np.ndarray:
    """The paper's error, by numpy's least squares: float64 [N]."""
    chosen = [int(np.linalg.norm(x - x.mean(0), axis=1).argmax())]
    while len(chosen) < min(count, len(x)):
        distance = [min(np.linalg.norm(row - x[i]) for i in chosen) for row in x]
        chosen.append(int(np.argmax(distance)))
    weights, *_ = np.linalg.lstsq(x[chosen].T, x.T, rcond=1e-9)
    return np.linalg.norm(x.T - x[chosen].T @ weights, axis=0)


def merged(tokens: Tensor, k: int, count: int) -> dict[int, np.ndarray]:
    """Row -> what stands there."""
    x, cosine = tokens.double().numpy(), cosines(tokens)
    error = errors(x, count).round(8)
    kept = sorted(sorted(range(len(x)), key=lambda i: -error[i])[:k])
    groups: dict[int, list[int]] = {i: [i] for i in kept}
    for i in range(len(x)):
        if i not in groups:
            groups[max(kept, key=lambda j: cosine[i, j])].append(i)
    return {i: x[own].mean(0) for i, own in groups.items()}


@pytest.mark.parametrize("make", [features, clustered, zeros_among])
@pytest.mark.parametrize("count", [1, 4, 10])
@pytest.mark.parametrize("seed", range(2))
def test_equals_the_paper(make, count, seed):
    tokens = make(30, d=24, seed=seed)
    for k in range(1, 31):
        selection, expected = ApET(k, basis=count).select(tokens), merged(tokens, k, count)
        assert selection.kept.tolist() == sorted(expected)
        assert selection.features is not None
        wanted = torch.tensor(np.stack([expected[i] for i in sorted(expected)])).float()
        torch.testing.assert_close(selection.features, wanted, rtol=0, atol=1e-5)


def test_scores_are_the_errors():
    tokens = features(40, d=24)
    scores = ApET(0.5).select(tokens).scores
    assert scores is not None
    torch.testing.assert_close(scores.double(), torch.tensor(errors(tokens.double().numpy(), 10)), rtol=0, atol=1e-5)


def test_tokens_that_a_basis_spans_go_by_index():
    """In eight dimensions ten basis tokens reconstruct everything."""
    assert ApET(4).select(features(20, d=8)).kept.tolist() == [0, 1, 2, 3]
    assert ApET(4).select(torch.eye(3)[torch.arange(20) % 3]).kept.tolist() == [0, 1, 2, 3]


def test_what_is_unlike_all_others_is_kept():
    """Two dense directions, which two basis tokens reconstruct, and one token of a third, shorter than these."""
    tokens = torch.eye(3)[[0, 0, 1, 1, 2]] * torch.tensor([5.0, 4.0, 5.0, 4.0, 1.0])[:, None]
    assert ApET(1, basis=2).select(tokens).kept.tolist() == [4]


def test_keeping_all_merges_nothing():
    tokens = features(20, d=24).half()
    assert torch.equal(ApET(1.0).select(tokens).features, tokens)
