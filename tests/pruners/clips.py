"""Videos of random frames, with what a vision tower would tell of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from towered import clustered, features, zeros_among

from gprune import View, VisualTokens


def doubled(n: int, d: int = 8, seed: int = 0) -> Tensor:
    """Tokens each of which is there twice, one half of them after the other."""
    return features(n, d, seed)[torch.arange(n) % ((n + 1) // 2)]


def zeros(n: int, d: int = 8, seed: int = 0) -> Tensor:
    """Tokens that are all zero."""
    return torch.zeros(n, d)


KINDS: tuple[Callable[..., Tensor], ...] = (features, clustered, doubled, zeros_among, zeros)


def scenes(frames: int, each: int, make: Callable[..., Tensor] = features, seed: int = 0) -> VisualTokens:
    """One video with a cut after every three frames, half of each frame still between cuts; a fixed row at the end."""
    tokens = make(frames * each + 1, seed=seed)
    for frame in range(frames):
        scene = frame // 3 * 3 * each
        tokens[frame * each : frame * each + each // 2] = tokens[scene : scene + each // 2]
    views = tuple(View(torch.arange(each) + frame * each, (1, each)) for frame in range(frames))
    attention = torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed + 1000))
    attention[-1] = torch.nan
    return VisualTokens(tokens, views, (len(tokens),), {"attention": attention})


def kept_in_frames(tokens: VisualTokens, kept: Tensor) -> list[int]:
    """How many tokens of each frame are kept."""
    return [int(torch.isin(view.rows, kept).sum()) for view in tokens.views]
