"""EVS: the first frame, then what differs most from the same place of the frame before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from towered import clustered, features, zeros_among

from gprune import EVS, View, VisualTokens
from gprune.tokens import kept_count


def clip(frames: int, each: int, make=features, seed: int = 0) -> VisualTokens:
    """Frames of one video, half of whose tokens stand still from one to the next; one fixed row at the end."""
    moving, still = make(frames * each + 1, seed=seed), make(each, seed=seed + 50)
    for frame in range(frames):
        moving[frame * each : frame * each + each // 2] = still[: each // 2]
    views = tuple(View(torch.arange(each) + frame * each, (1, each)) for frame in range(frames))
    return VisualTokens(moving, views, (len(moving),))


def distances(tokens: VisualTokens) -> list[float]:
    """d(t, p), a token at a time; infinite in the first frame, NaN for what is in no frame."""
    x = tokens.features.double().numpy()
    result = [np.nan] * len(x)
    for frame, view in enumerate(tokens.views):
        for place, row in enumerate(view.rows.tolist()):
            if frame == 0:
                result[row] = np.inf
                continue
            before = x[int(tokens.views[frame - 1].rows[place])]
            lengths = np.linalg.norm(x[row]), np.linalg.norm(before)
            same = np.array_equal(x[row], before)
            result[row] = 0.0 if same else 1 - x[row] @ before / (lengths[0] * lengths[1]) if all(lengths) else 0.5
    return result


@pytest.mark.parametrize("make", [features, clustered, zeros_among])
@pytest.mark.parametrize("frames", [2, 5, 64])
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.7, 40])
def test_equals_the_paper(make, frames, keep):
    tokens = clip(frames, 12, make)
    distance = distances(tokens)
    order = sorted(range(12 * frames), key=lambda i: -distance[i])
    expected = sorted([*order[: kept_count(12 * frames, keep)], 12 * frames])
    assert EVS(keep).select(tokens).kept.tolist() == expected


def test_what_stands_still_goes_and_a_cut_stays():
    """Four frames of one picture, then four of another: the first of either, and nothing else, is worth keeping."""
    pictures = features(12).split(6)
    tokens = torch.cat([pictures[0]] * 4 + [pictures[1]] * 4)
    views = tuple(View(rows, (2, 3)) for rows in torch.arange(48).split(6))
    assert EVS(12).select(VisualTokens(tokens, views, (48,))).kept.tolist() == [*range(6), *range(24, 30)]


def test_every_frame_has_its_share_with_scope_view():
    tokens = clip(5, 12)
    kept = EVS(0.25, scope="view").select(tokens).kept
    assert [int(torch.isin(view.rows, kept).sum()) for view in tokens.views] == [3] * 5


def test_videos_do_not_follow_one_another():
    videos = [clip(frames, 12, seed=frames) for frames in (3, 4)]
    both = EVS(0.5).select(VisualTokens.cat(videos)).kept.tolist()
    first, second = (EVS(0.5).select(video).kept.tolist() for video in videos)
    assert both == [*first, *(len(videos[0].features) + row for row in second)]


def test_a_budget_below_the_first_frame_warns():
    tokens = clip(4, 12)
    for keep, finding in ((12, None), (5, "only 5 of its 12 tokens")):
        pruner = EVS(keep)
        message = pruner.warning(pruner.select(tokens))
        assert (message is None) == (finding is None) and (finding is None or finding in message)
