"""What the features of visual tokens say without any answer: how alike they are, and how near the kept ones are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.blocks import directions
from ..kernels.gram import Gram
from ..pruners import GPrune
from ..tokens import VisualTokens

_BINS = 2000
"""Of cosines from -1 to 1: each is 0.001 wide."""

_WORST = 20
"""One in so many tokens is among the worst covered."""


class Likeness(NamedTuple):
    """How alike the tokens of an image are, over all pairs of distinct tokens of a view.

    Args:
        edge_share: share of the pairs that are edges of `GPrune`'s graph with its own default of `similarity`.
        tenth: the `similarity` with which a tenth of the pairs would be edges, to 0.001.
    """

    edge_share: float
    tenth: float


class Coverage(NamedTuple):
    """How near the kept tokens of an image are to all of them: cosine to the nearest one that is kept, 1 for itself.

    Args:
        mean: over the tokens.
        worst: over the 5 % of the tokens, at least one, that are farthest.
    """

    mean: float
    worst: float


def likeness(tokens: VisualTokens) -> Likeness | None:
    """How alike the tokens of one or several images are; None where no view has two tokens."""
    counts, pairs = torch.zeros(_BINS, dtype=torch.float64), 0
    for view in tokens.views:
        pairs += len(view) * (len(view) - 1)
        for part, cosine in Gram(directions(tokens.features[view.rows])).parts():
            # What is outside of the bins, as a token and itself, counts in none.
            cosine.clamp_(-1, 1).scatter_(1, part[:, None], 2)
            counts += torch.histc(cosine, _BINS, -1, 1).double().cpu()
    if not pairs:
        return None
    shares = counts.flip(0).cumsum(0) / pairs  # of the pairs from a bin up, the highest bin first
    edges = round((1 - GPrune().similarity) * _BINS / 2)
    tenth = int((shares < 0.1).sum())
    return Likeness(float(shares[edges - 1]), 1 - 2 * (tenth + 1) / _BINS)


def feature_coverage(tokens: VisualTokens, kept: Sequence[Tensor]) -> Coverage | None:
    """How near the kept tokens of the images of a prompt are to all that a method could drop.

    Args:
        tokens: of the images, unpruned.
        kept: int64 [k] per image, rows of it.

    Returns:
        None where nothing is kept of an image.
    """
    prunable = ~tokens.fixed
    nearest = []
    starts = torch.tensor([0, *tokens.sizes]).cumsum(0).tolist()
    for start, size, rows in zip(starts, tokens.sizes, kept, strict=False):
        own = slice(start, start + size)
        mine = prunable[own]
        left = torch.zeros_like(mine).index_fill(0, rows.to(mine.device), True) & mine
        if not left.any():
            return None
        features = directions(tokens.features[own]).nan_to_num(0)
        best = [(block @ features[left].T).amax(1) for block in features[mine & ~left].split(2048)]
        nearest += [*best, features.new_ones(int(left.sum()))]
    values = torch.cat(nearest)
    worst = values.topk(max(1, len(values) // _WORST), largest=False).values
    return Coverage(float(values.mean()), float(worst.mean()))
