"""EVS: of a video, keep the patches that differ from the same patch of the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..tokens import VisualTokens
from .base import ScorePruner, Selection
from .clip import ClipPruner

FIRST = 3.0
"""The score of a frame without one before it: above every distance."""


@dataclass
class EVS(ClipPruner, ScorePruner):
    """Keep the tokens with the largest d(t, p) = 1 - cos(x[t, p], x[t - 1, p]), and before them the first frame.

    "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference", 2025, arXiv 2510.14624.
    Frame t is a view, and p a place in it. All frames share one budget, so that a scene that stands still
    keeps little of its frames and a cut keeps all of the frame after it.

    The paper never keeps fewer tokens than a frame has. Here `keep` is exact, as for every method: where it is less
    than that, only the first rows of the first frame are left, and attached it warns. Where both tokens have norm 0,
    d is 0, and 1/2 where one has.

    Args:
        keep, positions: see `Pruner`.
        scope: "image", the default here, is one budget over the clip, as in the paper; "view" gives every frame
            the same.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    def told(self, tokens: VisualTokens) -> dict[str, Tensor]:
        """How much each token differs from that at its place in the frame before: float64 [N]."""
        return {"change": changes(tokens)}

    def score(self, tokens: VisualTokens) -> Tensor:
        """d of every token: float64 [N]; 3 in a first frame."""
        return tokens.signals["change"]

    def warning(self, selection: Selection) -> str | None:
        """Say so when the budget has no room for the first frame."""
        assert selection.scores is not None
        first = int((selection.scores == FIRST).sum())
        kept = int((selection.scores[selection.kept] == FIRST).sum())
        if kept == first:
            return None
        return (
            f"EVS keeps the first frame of a video before all else, but only {kept} of its {first} tokens had room, "
            f"those that come first; pass a larger keep, or a method that looks at the picture"
        )


def changes(tokens: VisualTokens) -> Tensor:
    """How much each token differs from that at its place in the view before: float64 [N], in [0, 2], `FIRST` if none.

    A view that has another image, number of tokens or grid than the one before is a first frame.
    """
    change = torch.full_like(tokens.features[:, 0], FIRST, dtype=torch.float64)
    for before, view in pairwise(tokens.views):
        if (before.image, len(before), before.grid) == (view.image, len(view), view.grid):
            one, other = (normalize(tokens.features[rows].double(), dim=-1) for rows in (before.rows, view.rows))
            # Of what has norm 1 that is one minus the cosine, and of what is the same exactly 0.
            change[view.rows] = (one - other).square().sum(-1) / 2
    return change
