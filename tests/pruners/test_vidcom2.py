"""VidCom2: distinct frames keep more, and of each frame what is unlike its video and itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clips import KINDS, kept_in_frames, scenes

from gprune import VidCom2, View, VisualTokens
from gprune.tokens import kept_count


def similarities(tokens: VisualTokens) -> tuple[np.ndarray, np.ndarray]:
    """To the centres of video and frame, a frame at a time: [F, n] each."""
    x = np.stack([tokens.features[view.rows].double().numpy() for view in tokens.views])
    spread = x.reshape(-1, x.shape[-1]).var(0)
    x = x[..., sorted(range(x.shape[-1]), key=lambda c: spread[c])[: x.shape[-1] // 2]]
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    x = x / np.where(lengths > 0, lengths, 1)

    def gaussians(centre: np.ndarray) -> np.ndarray:
        distance = ((x - centre) ** 2).sum(-1)
        return sum(np.exp(-distance / (2 * 2.0**power)) for power in range(-3, 2))

    return gaussians(x.mean((0, 1))), gaussians(x.mean(1, keepdims=True))


def budgets(video: np.ndarray, k: int) -> list[int]:
    """Tokens of each frame: one, then again and again one more where the share is farthest from reached."""
    frames, each = video.shape
    distinct = -video.mean(1) / 0.01
    extra = np.exp(distinct - distinct.max())
    extra /= extra.sum()
    shares = k / frames * (1 + extra - extra.mean())
    counts = (
        [1] * frames if k >= frames else [int(t in np.argsort(-distinct, kind="stable")[:k]) for t in range(frames)]
    )
    while sum(counts) < k:
        free = [t for t in range(frames) if counts[t] < each]
        counts[max(free, key=lambda t: (np.float32(shares[t] - counts[t]), -t))] += 1
    return counts


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("frames", [2, 5, 64])
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.75, 70, 1.0])
def test_equals_the_paper(make, frames, keep):
    tokens = scenes(frames, 12, make, seed=frames)
    video, frame = similarities(tokens)
    expected = [12 * frames]
    for t, k in enumerate(budgets(video, min(kept_count(12 * frames, keep), 12 * frames))):
        order = sorted(range(12), key=lambda i: (round(video[t, i] + frame[t, i], 9), i))
        expected += [12 * t + i for i in order[:k]]
    assert VidCom2(keep).select(tokens).kept.tolist() == sorted(expected)


def test_a_distinct_frame_keeps_more():
    """Seven frames of one scene and one of another: twice the share, less an eighth of it."""
    scene, other = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0)).unbind()
    tokens = torch.cat([*[scene] * 3, other, *[scene] * 4]) + torch.ones(64)
    views = tuple(View(rows, (4, 4)) for rows in torch.arange(128).split(16))
    video = VisualTokens(tokens, views, (128,))
    counts = kept_in_frames(video, VidCom2(32).select(video).kept)
    assert counts[3] >= 7 and sum(counts) == 32 and set(counts[:3] + counts[4:]) == {3, 4}


def test_every_frame_keeps_a_token_if_there_are_as_many():
    tokens = scenes(20, 12)
    assert min(kept_in_frames(tokens, VidCom2(20).select(tokens).kept)) == 1
    fewer = kept_in_frames(tokens, VidCom2(13).select(tokens).kept)
    assert sorted(set(fewer)) == [0, 1] and sum(fewer) == 13
    video, _ = similarities(tokens)
    assert {t for t, count in enumerate(fewer) if count} == set(np.argsort(video.mean(1))[:13].tolist())


def test_every_frame_has_its_share_with_scope_view():
    tokens = scenes(5, 12)
    assert kept_in_frames(tokens, VidCom2(0.25, scope="view").select(tokens).kept) == [3] * 5


def test_what_is_like_its_frame_goes_first():
    """A flat frame with one token of another kind."""
    tokens = torch.ones(9, 8)
    tokens[4] = -1
    assert VidCom2(1).select(tokens).kept.tolist() == [4]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_features(width):
    assert len(VidCom2(5).select(torch.randn(9, width, generator=torch.Generator().manual_seed(0))).kept) == 5
