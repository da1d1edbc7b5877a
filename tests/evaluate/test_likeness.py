"""What features say: against all pairs at once, and on tokens that can be reckoned by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gprune import GPrune, View, VisualTokens
from gprune.evaluate.likeness import feature_coverage, likeness


def image(count: int = 60, seed: int = 0) -> VisualTokens:
    """Two views with a fixed row between them; some tokens are near-copies."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(6, 8, generator=generator)
    features = centres[torch.arange(count) % 6] + 0.4 * torch.randn(count, 8, generator=generator)
    views = (View(torch.arange(20)), View(torch.arange(21, count)))
    return VisualTokens(features, views, (count,))


def pairs(tokens: VisualTokens) -> Tensor:
    """Cosines of all pairs of distinct tokens of a view."""
    found = []
    for view in tokens.views:
        own = torch.nn.functional.normalize(tokens.features[view.rows].double(), dim=-1)
        found.append((own @ own.T)[~torch.eye(len(view), dtype=torch.bool)])
    return torch.cat(found)


def test_shares_of_pairs() -> None:
    tokens = VisualTokens.cat([image(), image(70, seed=1)])
    found, cosines = likeness(tokens), pairs(tokens)
    assert found is not None
    assert found.edge_share == pytest.approx((cosines >= GPrune().similarity).double().mean().item(), abs=1e-9)
    assert (cosines >= found.tenth).double().mean() >= 0.1 > (cosines >= found.tenth + 0.001).double().mean()


def test_edges_are_those_of_the_graph() -> None:
    tokens = image()
    shares = GPrune(keep=1.0).select(tokens).edge_share
    found = likeness(tokens)
    assert shares is not None and found is not None
    sizes = torch.tensor([len(view) * (len(view) - 1) for view in tokens.views])
    assert found.edge_share == pytest.approx(float((shares * sizes).sum() / sizes.sum()))


def test_a_token_alone_has_no_pairs() -> None:
    assert likeness(VisualTokens.of(torch.randn(1, 4))) is None


def test_coverage_by_hand() -> None:
    ones = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [9.0, 9.0]])
    tokens = VisualTokens(ones, (View(torch.arange(4)),), (5,))  # the last is a newline, which covers nothing
    found = feature_coverage(tokens, [torch.tensor([1, 4])])
    assert found is not None
    assert found.mean == pytest.approx((1 + 1 + 0 + 0.5**0.5) / 4)
    assert found.worst == pytest.approx(0)
    assert feature_coverage(tokens, [torch.arange(5)]) == pytest.approx((1, 1))
    assert feature_coverage(tokens, [torch.tensor([4])]) is None


def test_coverage_of_several_images_is_over_all_their_tokens() -> None:
    first, second = image(), image(200, seed=1)
    rows = [torch.arange(0, 60, 7), torch.arange(0, 200, 50)]
    found = feature_coverage(VisualTokens.cat([first, second]), rows)
    values = []
    for tokens, kept in zip((first, second), rows, strict=True):
        unit = torch.nn.functional.normalize(tokens.features.double(), dim=-1)
        near = (unit @ unit[[row for row in kept.tolist() if row != 20]].T).amax(1)
        values.append(near[tokens.rows])
    joined = torch.cat(values).sort().values
    assert found == pytest.approx((joined.mean().item(), joined[: len(joined) // 20].mean().item()), abs=1e-6)
