"""VidCom2: of a video, keep the tokens that are unlike its mean and that of their frame, more of distinct frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..tokens import VisualTokens
from .base import Selection, keep_top
from .clip import ClipPruner, frames_of

CHANNELS = 0.5
"""The share of the channels, those of lowest variance over the clip, on which tokens are compared."""

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
"""The widths a of the Gaussians exp(-|x - c|^2 / 2a)."""

_TEMPERATURE = 0.01
"""Of the softmax by which frames share the budget."""


@dataclass
class VidCom2(ClipPruner):
    """Keep the tokens least like the centres of their video and their frame; frames that are distinct keep more.

    Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
    EMNLP 2025, arXiv 2505.14454. Tokens are compared on the half of the channels that vary least over the clip,
    normalized there. How like a token is to a centre c, the mean of the video or of its frame, is the sum over a from
    1/8 to 2 of exp(-|x - c|^2 / 2a). A frame is distinct by the mean of its tokens' likeness to the video, negated;
    of p, the softmax of that at temperature 0.01, frame t of n tokens keeps keep * n * (1 + p_t - mean p), at least one
    and at most n. In each frame those stay whose likeness to video and frame adds up to least.

    The paper rounds every frame by itself. Here the budget of the clip is exact: shares are rounded by the largest
    remainder, and what a full frame has no room for goes to the others alike. A budget of fewer tokens than frames
    keeps one of each of the most distinct frames.

    Args:
        keep, scope, positions: see `ClipPruner`.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        scores = torch.zeros_like(tokens.features[:, 0], dtype=torch.float64)
        for view, k in zip(tokens.views, counts, strict=True):
            if k:
                scores[view.rows] = precedence(tokens.features[view.rows], frames_of(tokens, view), k)
        return keep_top(scores, tokens, counts)


def precedence(features: Tensor, frames: Sequence[Tensor], k: int) -> Tensor:
    """A score of which the k highest are those that VidCom2 keeps of a clip: float64 [n].

    That of the j-th token of a frame, from 0 for the most unlike, is the frame's share of k less j, so that one which
    the share covers whole has at least 1, and the one after them the remainder of the share. The first of every frame
    stand above all others, by how distinct the frames are.

    Args:
        features: floating [n, d].
        frames: which of them each frame has.
        k: at least 1.
    """
    x = steady_channels(features.double())
    to_video = gaussians(x)
    to_frame = torch.empty_like(to_video)
    for frame in frames:
        to_frame[frame] = gaussians(x[frame])
    distinct = -torch.stack([to_video[frame].mean() for frame in frames])
    extra = (distinct / _TEMPERATURE).softmax(0)
    sizes = torch.tensor([len(frame) for frame in frames], dtype=torch.float64, device=x.device)
    shares = k / len(x) * sizes * (1 + extra - extra.mean())
    scores, firsts = torch.empty_like(to_video), []
    for frame, share in zip(frames, shares, strict=True):
        order = frame[(to_video + to_frame)[frame].argsort(stable=True)]
        scores[order] = share - torch.arange(len(order), device=x.device)
        firsts.append(order[:1])
    # Ties to the earlier frame.
    last_to_first = torch.cat(firsts)[distinct.argsort(descending=True, stable=True)].flip(0)
    scores[last_to_first] = shares.max() + torch.arange(len(frames), dtype=torch.float64, device=x.device)
    return scores


def steady_channels(features: Tensor) -> Tensor:
    """The channels that vary least over all tokens, [n, max(1, d / 2)] of [n, d]; a token normalized on them."""
    count = max(1, int(CHANNELS * features.shape[1]))
    steady = features.var(0, correction=0).argsort(stable=True)[:count]
    return normalize(features[:, steady], dim=-1)


def gaussians(x: Tensor) -> Tensor:
    """How like each is to the mean of all, by Gaussians of all `WIDTHS`: float64 [n] of [n, d]."""
    distance = (x - x.mean(0)).square().sum(-1)
    return sum(((distance / (-2 * width)).exp() for width in WIDTHS), torch.zeros_like(distance))
