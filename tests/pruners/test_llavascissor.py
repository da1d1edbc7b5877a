"""LLaVA-Scissor: components by their definition, a pair at a time, at the threshold that leaves so many."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from clips import KINDS, kept_in_frames, scenes
from towered import cosines

from gprune import LLaVAScissor, VisualTokens
from gprune.tokens import kept_count


def grouped(x: np.ndarray, frame: list[int], count: int) -> tuple[list[list[int]], list[int]]:
    """The members of each component, and the one with the most edges; tokens of a frame are joined pair by pair."""
    n = len(x)
    alike = np.float32(np.minimum(cosines(torch.tensor(x)), 1))
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if frame[i] == frame[j]]
    tree, threshold = list(range(n)), math.inf
    for i, j in sorted(pairs, key=lambda pair: (-alike[pair], pair)):
        if len(set(tree)) == count:
            break
        if tree[i] != tree[j]:
            threshold = alike[i, j]
            low, high = sorted((tree[i], tree[j]))
            tree = [low if own == high else own for own in tree]
    edges = [sum(frame[i] == frame[j] and alike[i, j] >= threshold for j in range(n)) for i in range(n)]
    groups = [[i for i in range(n) if tree[i] == root] for root in sorted(set(tree))]
    return groups, [max(group, key=lambda i: (edges[i], -i)) for group in groups]


def kept(tokens: VisualTokens, k: int) -> dict[int, np.ndarray]:
    """Row -> what stands there."""
    rows = [row for view in tokens.views for row in view.rows.tolist()]
    frame = [t for t, view in enumerate(tokens.views) for _ in range(len(view))]
    x = tokens.features.double().numpy()[rows]
    groups, stands = grouped(x, frame, max(len(tokens.views), math.isqrt(k * len(x))))
    means = np.stack([x[group].mean(0) for group in groups])
    groups, again = grouped(means, [0] * len(means), k)
    means = np.stack([means[group].mean(0) for group in groups])
    alike = cosines(torch.tensor(np.concatenate([x, means])))[: len(x), len(x) :]
    own = [max(range(k), key=lambda j: (round(alike[i, j], 6), -j)) for i in range(len(x))]
    merged = [np.stack([means[j], *(x[i] for i in range(len(x)) if own[i] == j)]).mean(0) for j in range(k)]
    return {rows[stands[head]]: mean for head, mean in zip(again, merged, strict=True)}


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(("frames", "each"), [(2, 12), (9, 10), (64, 3)])
def test_equals_the_definition_pair_by_pair(make, frames, each):
    tokens = scenes(frames, each, make, seed=frames)
    for keep in (0.05, 0.3, 0.8):
        selection = LLaVAScissor(keep).select(tokens)
        expected = kept(tokens, kept_count(frames * each, keep))
        expected[frames * each] = tokens.features[-1].numpy()
        assert selection.kept.tolist() == sorted(expected)
        wanted = torch.tensor(np.stack([expected[i] for i in sorted(expected)])).float()
        assert selection.features is not None
        torch.testing.assert_close(selection.features, wanted, rtol=0, atol=1e-5)


def test_a_scene_of_three_things_becomes_three_tokens():
    """Three directions, told apart in every frame, whose tokens lie anywhere."""
    generator = torch.Generator().manual_seed(0)
    things = torch.randint(0, 3, (96,), generator=generator)
    tokens = torch.eye(8)[things] + 0.02 * torch.randn(96, 8, generator=generator)
    video = VisualTokens(tokens, scenes(8, 12).views, (96,))
    selection = LLaVAScissor(3).select(video)
    assert selection.features is not None
    order = things[selection.kept]
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(selection.features, torch.eye(8)[order], rtol=0, atol=0.02)


def test_every_frame_has_its_share_with_scope_view():
    tokens = scenes(5, 12)
    assert kept_in_frames(tokens, LLaVAScissor(0.25, scope="view").select(tokens).kept) == [3] * 5


def test_parallel_tokens_stay_as_they_are_when_all_are_kept():
    tokens = torch.ones(6, 4) * torch.arange(1, 7)[:, None]
    selection = LLaVAScissor(6).select(tokens)
    assert selection.features is not None and torch.equal(selection.features, tokens)
