"""How the tiles of an image share its budget: by how much each stands out in the view of the whole (GlobalCom2).

Liu et al., "Global Compression Commander: Plug-and-Play Inference Acceleration for High-Resolution Large
Vision-Language Models", AAAI 2026, arXiv 2501.05179: tile j of n keeps the ratio r_j = R (1 + sigma_j - 1 / n), where
sigma is the softmax over the tiles of s_j / 10, and s_j the sum of what [CLS] attends to in that region of the base
view which the tile shows. The base view keeps R.

Had to be decided: the attention is that of `ClsAttention`, and s_j sums its logarithms, less their mean. Attention adds
up to 1, so that at a temperature of 10 sums of it would share evenly but for 3 %; the released code sums what attention
is before its softmax, of which the logarithm is the same but for a constant, where there is one head. Less their mean,
for a tile at the edge that shows less of the picture is not to gain or lose by that; a token of the base view that two
tiles show counts for each by its part. The numbers of an image add up to exactly what its views keep without shares:
where r_j is more than a tile has, the others get the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, product

import torch
from torch import Tensor

from ..errors import BadValue
from ..tokens import View, VisualTokens

TILE_TEMPERATURE = 10.0
"""Of the softmax over the tiles."""


def tile_counts(tokens: VisualTokens, counts: Sequence[int]) -> list[int]:
    """How many tokens are kept of each view of `tokens.per_tile()`, where `counts` are kept of `tokens.views`.

    Args:
        tokens: with the signal "attention".
        counts: of each view.

    Raises:
        BadValue: it is not known which part of the picture a view shows.
    """
    shared: list[int] = []
    for view, count in zip(tokens.views, counts, strict=True):
        if view.tiles is None:
            _check_alone_or_base(view, tokens)
            shared.append(count)
        else:
            shared += _share(view, _base_of(view, tokens), tokens.signals["attention"], count)
    return shared


def apportion(total: int, weights: Sequence[float], most: Sequence[int]) -> list[int]:
    """Share a number in proportion to weights, by largest remainder; ties go to the earlier.

    Args:
        total: at most the sum of `most`.
        weights: above 0.
        most: the most that each can get, at least 1.

    Returns:
        The shares, exact in sum; at least 1 each where the total is enough for that.
    """
    least = int(total >= len(weights))
    ideal: dict[int, float] = {}
    free = list(range(len(weights)))
    while free:
        scale = (total - sum(ideal.values())) / sum(weights[i] for i in free)
        above = {i: float(most[i]) for i in free if scale * weights[i] > most[i]}
        below = {i: float(least) for i in free if scale * weights[i] < least}
        excess = sum(scale * weights[i] - bound for i, bound in above.items())
        lack = sum(bound - scale * weights[i] for i, bound in below.items())
        bounded = above if excess >= lack else below
        ideal |= bounded or {i: scale * weights[i] for i in free}
        free = [i for i in free if i not in ideal]
    shares = [math.floor(ideal[i]) for i in range(len(weights))]
    by_remainder = sorted(range(len(weights)), key=lambda i: shares[i] - ideal[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def _share(view: View, base: View, attention: Tensor, count: int) -> list[int]:
    assert view.tiles is not None
    sizes = [height * width for height, width in product(*view.tiles)]
    ratios = 1 + (standing_out(attention[base.rows], base, view) / TILE_TEMPERATURE).softmax(0) - 1 / len(sizes)
    return apportion(count, [size * ratio for size, ratio in zip(sizes, ratios.tolist(), strict=True)], sizes)


def standing_out(attention: Tensor, base: View, view: View) -> Tensor:
    """s_j of each tile of a view: float64 [n].

    Args:
        attention: float32 [m], what the tokens of the base view receive.
        base: whose grid is known.
        view: which is put together of n tiles.
    """
    assert view.tiles is not None and base.grid is not None
    logs = attention.double().cpu().clamp(min=torch.finfo(torch.float32).tiny).log()
    down, across = (_overlaps(lines, cells) for lines, cells in zip(view.tiles, base.grid, strict=True))
    parts = down[:, None, :, None] * across[None, :, None, :]
    return (parts * (logs - logs.mean()).view(base.grid)).sum((-2, -1)).flatten()


def _overlaps(lines: Sequence[int], cells: int) -> Tensor:
    """float64 [n, cells]: how much of each cell is in each tile, n tiles of so many lines spanning all cells."""
    edges = torch.tensor([0, *accumulate(lines)], dtype=torch.float64) * cells / sum(lines)
    starts = torch.arange(cells)
    return (torch.minimum(edges[1:, None], starts + 1) - torch.maximum(edges[:-1, None], starts)).clamp(min=0)


def _base_of(view: View, tokens: VisualTokens) -> View:
    """The view that shows what the tiles of another show."""
    others = _beside(view, tokens)
    if len(others) != 1 or others[0].tiles is not None or others[0].grid is None:
        raise BadValue(
            f"image {view.image}, counted from 0, has a view put together of tiles, and beside it {len(others)} views; "
            f'shares="global" goes by one that shows the whole picture, whose grid is known; pass shares="own"'
        )
    return others[0]


def _beside(view: View, tokens: VisualTokens) -> list[View]:
    """The other views of its image that have tokens."""
    return [each for each in tokens.views if each.image == view.image and len(each) and each is not view]


def _check_alone_or_base(view: View, tokens: VisualTokens) -> None:
    others = _beside(view, tokens)
    if len(view) and others and all(each.tiles is None for each in others):
        raise BadValue(
            f"image {view.image}, counted from 0, has {len(others) + 1} views, of which none says which tiles of the "
            f'picture it was put together of; shares="global" must know that; give View(..., tiles=...), or pass '
            f'shares="own" for videos and for images whose tiles are not known'
        )
