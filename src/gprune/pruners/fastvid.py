"""FastVID: of a video, keep attended tokens of each frame, and merge the others of a segment into its density peaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import Between, Count, setting
from ..kernels.gram import gram, gram_flops
from ..tokens import VisualTokens, kept_count
from .base import Need, Selection
from .bat import density_peaks
from .clip import ClipPruner, frames_of, group_sums
from .visionzip import nearest

NEIGHBOURS = 4
"""Tokens whose distance tells how dense the place of a token is."""

COPY = 1e-12
"""A squared distance below this share of both squared norms is rounding."""


@dataclass
class FastVID(ClipPruner):
    """Keep attended tokens, and density peaks into which the others are merged, segment by segment of the video.

    Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models", NeurIPS 2025,
    arXiv 2503.11187. The video is cut between its `segments` - 1 least similar neighbouring frames, and between all
    whose similarity is below `similarity`. Of the k tokens that a frame may keep, floor(density * k) are for anchors,
    and the others are the most attended. All anchors of a segment lie in every `step`-th of its frames, counted from
    the last: the tokens of largest density, exp of minus the mean squared distance to the nearest, times the distance
    to the nearest denser token of the frame. Each token of the segment that is not among the attended is merged into
    the anchor of the largest cosine: an anchor a becomes beta a + (1 - beta) m, with m the mean of itself and those.

    The paper measures frames by the vision tower's global feature; here it is the mean of their tokens. Had to be
    decided: distances are Euclidean over the root of the width, of 4 neighbours, the token itself not counted; and the
    budget of the clip is exact. Frames and anchor frames share by largest remainder, and what is left
    where anchor frames have no room goes to the most attended other tokens of the segment. With scope="view" every
    frame is a segment. Attention is as in `ClsAttention`.

    Args:
        keep, scope, positions: see `ClipPruner`.
        segments: int >= 1, at least so many, where there are frames enough; the paper's c.
        similarity: in [-1, 1], the cosine below which neighbouring frames are cut apart; the paper's tau.
        step: int >= 1, frames of a segment for each anchor frame; the paper's p.
        density: in [0, 1], the share of the budget that is for anchors; the paper's d.
        beta: in [0, 1], how much of an anchor is itself.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    segments: int = setting(8, Count(1))
    similarity: float = setting(0.9, Between(-1, 1))
    step: int = setting(4, Count(1))
    density: float = setting(0.4, Between(0, 1))
    beta: float = setting(0.6, Between(0, 1))

    needs: ClassVar[tuple[Need, ...]] = ("frames", "attention")
    merges = True

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        attention = tokens.signals["attention"].float()
        kept, merged = tokens.fixed, tokens.features.clone()
        for view, k in zip(tokens.views, counts, strict=True):
            if k == 0:
                continue
            features = tokens.features[view.rows].double()
            frames = frames_of(tokens, view)
            budgets = kept_count([len(frame) for frame in frames], k)
            for part in self._segments(torch.stack([features[frame].mean(0) for frame in frames])):
                salient, anchors, rest = self._split(features, attention[view.rows], frames[part], budgets[part])
                kept[view.rows[torch.cat([salient, anchors])]] = True
                if len(anchors):
                    places = torch.arange(len(anchors), device=rest.device)
                    # The anchors come first among all that may be merged.
                    groups = nearest(features[torch.cat([anchors, rest])], places)
                    sums, sizes = group_sums(features[torch.cat([anchors, rest])], groups, len(anchors))
                    own = features[anchors]
                    mixed = own + (1 - self.beta) * (sums / sizes - own)
                    merged[view.rows[anchors]] = mixed.float().to(merged.dtype)
        rows = kept.nonzero().squeeze(1)
        return Selection(rows, attention.masked_fill(tokens.fixed, torch.nan), features=merged[rows])

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs that are not attended, and of those with the anchors."""
        anchors = int(self.density * kept + 1e-6)
        rest = count - kept + anchors
        return gram_flops(rest, width) + 2 * rest * anchors * width if anchors else 0

    def _segments(self, means: Tensor) -> Iterator[slice]:
        """Runs of frames, by the mean of each, [F, d]."""
        directions = normalize(means, dim=-1)
        alike = (directions[1:] * directions[:-1]).sum(-1)
        cut = alike < self.similarity
        cut[alike.argsort(stable=True)[: self.segments - 1]] = True
        ends = (cut.nonzero().squeeze(1) + 1).tolist()
        return (slice(start, end) for start, end in pairwise([0, *ends, len(means)]))

    def _split(
        self, features: Tensor, attention: Tensor, frames: Sequence[Tensor], budgets: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens of a segment that are kept as they are, the anchors, and those merged into them, int64 each."""
        contextual = [int(self.density * k + 1e-6) for k in budgets]
        salient, others = [], []
        for frame, k, own in zip(frames, budgets, contextual, strict=True):
            order = frame[attention[frame].sort(descending=True, stable=True).indices]
            salient.append(order[: k - own])
            others.append(order[k - own :].sort().values)
        # From the last frame back.
        candidates = others[:: -self.step]
        rooms = [len(tokens) for tokens in candidates]
        wanted = min(sum(contextual), sum(rooms))
        shares = kept_count(rooms, wanted) if wanted else [0] * len(rooms)
        peaks = [
            own[density_peaks(euclidean_distance(features[own]), share, NEIGHBOURS)]
            for own, share in zip(candidates, shares, strict=True)
            if share
        ]
        anchors = torch.cat([frames[0][:0], *peaks]).sort().values
        rest = torch.cat(others)
        rest = rest[~torch.isin(rest, anchors)]
        rest = rest[attention[rest].sort(descending=True, stable=True).indices]
        more = sum(contextual) - wanted
        return torch.cat([*salient, rest[:more]]), anchors, rest[more:]


def euclidean_distance(features: Tensor) -> Tensor:
    """float64 [n, n], between features [n, d], over the root of d; rounded to float32, so that copies have no order."""
    products = gram(features)
    squares = products.diagonal()
    norms = squares[:, None] + squares
    squared = norms - 2 * products
    squared[squared < COPY * norms] = 0
    return (squared / features.shape[1]).sqrt().float().double()
