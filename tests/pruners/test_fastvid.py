"""FastVID: segments of a video, attended tokens and density peaks, a token at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from clips import KINDS, kept_in_frames, scenes
from towered import cosines

from gprune import FastVID, View, VisualTokens
from gprune.tokens import kept_count


def segments(x: np.ndarray, count: int, threshold: float) -> list[list[int]]:
    """Frames of each segment; x [F, n, d]."""
    alike = [cosines(torch.tensor(x[t : t + 2].mean(1)))[0, 1] for t in range(len(x) - 1)]
    least = sorted(range(len(alike)), key=lambda t: round(alike[t], 12))[: count - 1]
    runs = [[0]]
    for t, value in enumerate(alike):
        runs += [[]] if value < threshold or t in least else []
        runs[-1].append(t + 1)
    return runs


def peaks(x: np.ndarray, count: int) -> list[int]:
    """Of density: the most dense tokens far from denser ones; copies have no order but their places."""
    n = len(x)
    distance = [[float(np.float32(math.dist(x[i], x[j]) / math.sqrt(x.shape[1]))) for j in range(n)] for i in range(n)]
    near = [sorted(distance[i][j] for j in range(n) if j != i)[:4] for i in range(n)]
    thin = [sum(d * d for d in own) / max(len(own), 1) for own in near]
    rank = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if (thin[j], j) < (thin[i], i)]
        rank.append(math.exp(-thin[i]) * (min(denser) if denser else max(distance[i])))
    return sorted(range(n), key=lambda i: -rank[i])[:count]


def kept(tokens: VisualTokens, k: int, pruner: FastVID) -> dict[int, np.ndarray]:
    """Row -> what stands there."""
    x = tokens.features.double().numpy()
    attention = tokens.signals["attention"].tolist()
    frames = [view.rows.tolist() for view in tokens.views]
    result = {}
    budgets = kept_count([len(frame) for frame in frames], k)
    for segment in segments(np.stack([x[frame] for frame in frames]), pruner.segments, pruner.similarity):
        others, wanted = {}, 0
        for t in segment:
            own = math.floor(pruner.density * budgets[t] + 1e-6)
            order = sorted(frames[t], key=lambda i: -attention[i])
            result |= {i: x[i] for i in order[: budgets[t] - own]}
            others[t] = sorted(order[budgets[t] - own :])
            wanted += own
        at = segment[::-1][:: pruner.step]
        rooms = [len(others[t]) for t in at]
        shares = kept_count(rooms, wanted) if wanted else [0] * len(at)
        anchors = [others[t][i] for t, share in zip(at, shares, strict=True) for i in peaks(x[others[t]], share)]
        rest = sorted((i for t in segment for i in others[t] if i not in anchors), key=lambda i: -attention[i])
        more = wanted - len(anchors)
        result |= {i: x[i] for i in rest[:more]}
        groups = {anchor: [anchor] for anchor in sorted(anchors)}
        alike = cosines(tokens.features)
        for i in rest[more:] if groups else ():
            groups[max(groups, key=lambda j: (round(alike[i, j], 6), -j))].append(i)
        result |= {i: pruner.beta * x[i] + (1 - pruner.beta) * x[own].mean(0) for i, own in groups.items()}
    return result


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(("frames", "each"), [(2, 12), (9, 12), (64, 6)])
@pytest.mark.parametrize("settings", [{}, {"segments": 3, "similarity": 0.2, "step": 2, "density": 0.7, "beta": 0.3}])
def test_equals_the_paper_token_by_token(make, frames, each, settings):
    tokens = scenes(frames, each, make, seed=frames)
    for keep in (0.1, 0.3, 0.8, 1.0):
        pruner = FastVID(keep, **settings)
        selection = pruner.select(tokens)
        expected = kept(tokens, kept_count(frames * each, keep), pruner)
        expected[frames * each] = tokens.features[-1].numpy()
        assert selection.kept.tolist() == sorted(expected)
        wanted = torch.tensor(np.stack([expected[i] for i in sorted(expected)])).float()
        assert selection.features is not None
        torch.testing.assert_close(selection.features, wanted, rtol=0, atol=1e-5)


def test_a_scene_has_its_anchors_in_every_fourth_frame_from_its_last():
    """Two scenes, of 6 and 3 frames, of which half of the budget, without attention, is 8 tokens a frame."""
    one, other = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0)).unbind()
    tokens = torch.cat([*[one] * 6, *[other + 2] * 3])
    views = tuple(View(rows, (5, 8)) for rows in torch.arange(360).split(40))
    video = VisualTokens(tokens, views, (360,), {"attention": torch.rand(360)})
    counts = kept_in_frames(video, FastVID(72, segments=2, density=1).select(video).kept)
    assert counts == [0, 24, 0, 0, 0, 24, 0, 0, 24]


def test_what_the_anchor_frames_have_no_room_for_goes_to_attended_tokens():
    tokens = scenes(4, 10)
    selection = FastVID(36, segments=1, similarity=-1, density=1).select(tokens)
    attention = tokens.signals["attention"][:30]
    gone = attention.argsort()[:4].sort().values.tolist()
    assert selection.kept.tolist() == [row for row in range(41) if row not in gone]


def test_without_anchors_it_is_attention_alone():
    tokens = scenes(4, 10)
    selection = FastVID(0.3, density=0).select(tokens)
    best = [10 * t + tokens.signals["attention"][10 * t : 10 * t + 10].argsort(descending=True)[:3] for t in range(4)]
    assert torch.equal(selection.kept[:-1], torch.cat(best).sort().values)
    assert selection.features is not None and torch.equal(selection.features, tokens.features[selection.kept])


def test_every_frame_has_its_share_with_scope_view():
    tokens = scenes(9, 12)
    assert kept_in_frames(tokens, FastVID(0.5, scope="view").select(tokens).kept) == [6] * 9


def test_attention_is_needed():
    with pytest.raises(ValueError, match="FastVID needs the attention of the vision tower"):
        FastVID().select(torch.ones(9, 8))
