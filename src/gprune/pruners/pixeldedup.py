"""PixelDedup: leave out, before the vision tower, what shows the same pixels as its neighbour or as the background."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import Between, setting
from ..tokens import Budget, Keep, kept_count
from .base import Acts, Method


@dataclass
class PixelDedup(Method):
    """Leave out of the vision tower what equals the token before it, or the background, pixel by pixel.

    A token is a group of patches. It is compared with the one before it in reading order, or, where that was left out,
    with the one that it was left out for; and with the background, which is the first of the groups of one colour that
    most others share. It leaves where no pixel differs by more than `tau`. So whatever leaves equals, within `tau`, a
    token that stays, and at least one token of a picture does. The tower and the LLM see only what stays, at its
    original place.

    Ideas: "PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding", 2026, arXiv 2604.00886,
    drops patches that equal their prediction within tau; DocPrune, 2026, arXiv 2604.22281, those that are background.
    The rule is our own: theirs for what predicts a patch could not be verified.

    Args:
        keep: the ratio, or the number of tokens per image, that is kept at most; where more would stay, those nearest
            to what they were compared with leave too, however far they are.
        tau: the largest difference that counts as none, in [0, 1], as a share of the picture's own range of values,
            from its darkest to its brightest, in the colour channel where that is largest. That needs no knowledge of
            how pixels were normalised, and is never looser than a share of all values there are. 0: exact duplicates.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    keep: Keep = setting(1.0, Budget())
    tau: float = setting(0.02, Between(0, 1))

    @property
    def acts(self) -> Acts:
        """Before the vision tower."""
        return "before the tower"

    @property
    def keeps_all(self) -> bool:
        """Never sure: how many leave depends on the picture."""
        return False

    @torch.no_grad()
    def choose(self, groups: Tensor) -> Tensor:
        """Which groups of a picture the tower is given: bool [n], n >= 1, at least one True.

        Args:
            groups: floating [n, c, v], in reading order, c colour channels of v values each.
        """
        groups = groups.float()
        low, high = groups.aminmax(dim=2)
        limit = self.tau * (high.amax(0) - low.amin(0)).amax()
        ground = _ground(low, high, limit)
        groups = groups.flatten(1)
        to_ground = torch.full_like(groups[:, 0], torch.inf) if ground is None else _distance(groups, groups[ground])
        stands_for = _predecessors(groups, to_ground <= limit, limit)
        if ground is not None:
            stands_for[to_ground <= limit] = ground
        left = stands_for == torch.arange(len(groups), device=groups.device)
        surplus = int(left.sum()) - kept_count(len(groups), self.keep)
        if surplus > 0:
            error = torch.minimum(to_ground, _distance(groups, groups[stands_for.roll(1)]))
            error[0 if ground is None else [0, ground]] = torch.inf
            # Of those that are equally near, the later leave.
            staying = left.nonzero().squeeze(1).flip(0)
            left[staying[error[staying].sort(stable=True).indices[:surplus]]] = False
        return left


def _distance(groups: Tensor, others: Tensor) -> Tensor:
    """The largest difference of any value: [n], of [n, d] and [n, d] or [d]."""
    return (groups - others).abs_().amax(-1)


def _ground(low: Tensor, high: Tensor, limit: Tensor) -> int | None:
    """The first group of the colour that fills the most groups; None if none is of one colour.

    Args:
        low, high: [n, c], the least and the largest value of each channel in each group.
        limit: by which values of one colour differ at most.
    """
    flat = ((high - low).amax(1) <= limit).nonzero().squeeze(1)
    if not len(flat):
        return None
    colours = low[flat] if limit == 0 else ((low[flat] - low.amin(0)) / limit).round()
    _, kinds, counts = colours.unique(dim=0, return_inverse=True, return_counts=True)
    return int(flat[(kinds == counts.argmax()).nonzero()[0, 0]])


def _predecessors(groups: Tensor, background: Tensor, limit: Tensor) -> Tensor:
    """Of each group, [n, d], the one before it that it leaves for: int64 [n]; itself, if it stays or is background."""
    stands_for = torch.arange(len(groups), device=groups.device)
    steps = _distance(groups[1:], groups[:-1])
    edges = background[1:] | background[:-1]
    # What follows its equal may go on for long, but not over a step of more than two limits.
    starts = ((steps <= limit) & ~edges).nonzero().squeeze(1).add(1).tolist()
    breaks = ((steps > 2 * limit) | edges).nonzero().squeeze(1).add(1).tolist()
    breaks.append(len(groups))
    decided = 0
    for start in starts:
        if start <= decided:
            continue
        stop = breaks[bisect_right(breaks, start)]
        differs = _distance(groups[start:stop], groups[start - 1]) > limit
        decided = start + int(torch.cat([differs, differs.new_ones(1)]).int().argmax())
        stands_for[start:decided] = start - 1
    return stands_for
