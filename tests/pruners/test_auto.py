"""Auto: GraphVote where enough is kept, GraphCover where little is, each view for itself."""

from __future__ import annotations

import pytest
import torch
from towered import clustered, features, known, two_views

from gprune import Auto, GraphCover, GraphVote, View


@pytest.mark.parametrize("make", [features, clustered])
@pytest.mark.parametrize(
    ("keep", "method"), [(0.9, GraphVote), (0.3, GraphVote), (12, GraphVote), (11, GraphCover), (0.05, GraphCover)]
)
def test_it_keeps_what_the_method_for_the_share_keeps(make, keep, method):
    tokens = make(70)
    assert torch.equal(Auto(keep).select(tokens).kept, method(keep).select(tokens).kept)


def test_the_two_methods_differ_on_what_it_is_tried_with():
    for keep in (0.3, 12, 11, 0.05):
        assert not torch.equal(GraphVote(keep).select(clustered(70)).kept, GraphCover(keep).select(clustered(70)).kept)


def test_views_of_one_image_may_fall_on_both_sides():
    """Of 15 tokens 18 % are 2, less than a sixth; of 64 they are 11, which is more."""
    tokens = known(clustered(79), 0, (View(torch.arange(15)), View(torch.arange(15, 79))))
    few, many = tokens.views
    expected = [*GraphCover().choose(tokens, few, 2).tolist(), *GraphVote().choose(tokens, many, 11).tolist()]
    assert Auto(0.18).select(tokens).kept.tolist() == sorted(expected)


def test_with_image_scope_the_share_is_of_the_image():
    tokens = two_views()
    for keep, method in ((0.3, GraphVote), (3, GraphCover)):
        assert torch.equal(
            Auto(keep, scope="image").select(tokens).kept, method(keep, scope="image").select(tokens).kept
        )
