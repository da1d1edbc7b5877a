"""VisPruner: keep the tokens the vision tower attends to, and of the others those that have no like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import Between, setting
from ..tokens import View, VisualTokens
from .base import Need, SetPruner


@dataclass
class VisPruner(SetPruner):
    """Keep a share r of the budget by attention, and fill it with what is left of the others without near-duplicates.

    Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", ICCV 2025,
    arXiv 2412.01818. Of k tokens floor(r k) are important: those with the most attention, which is as in
    `ClsAttention`. From the rest duplicates are removed, round by round, until the others of the k are left.

    How many go in a round had to be decided: the tokens left, in their order, are divided in two, every second one; of
    the first half those go that are most alike (cosine) to one of the second, at most half of that half. Likeness is
    that of the features as the LLM would receive them. A token whose norm is 0 points nowhere: its cosine to all is 0.

    Args:
        keep, scope, positions: see `Pruner`.
        important: in [0, 1], the share of the tokens kept that are kept for their attention; the paper's r.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    important: float = setting(0.5, Between(0, 1))

    needs: ClassVar[tuple[Need, ...]] = ("attention",)

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """The k rows of `view` that are left: int64 [k], the important first; ties keep the lower index."""
        important = self._important(k)
        order = tokens.signals["attention"][view.rows].sort(descending=True, stable=True).indices
        rest = order[important:].sort().values
        directions = normalize(tokens.features[view.rows].double(), dim=-1)
        for goes in _rounds(len(rest), k - important):
            likeness = (directions[rest[::2]] @ directions[rest[1::2]].T).amax(-1)
            stays = torch.ones_like(rest, dtype=torch.bool)
            stays[2 * likeness.argsort(stable=True)[len(likeness) - goes :]] = False
            rest = rest[stays]
        return view.rows[torch.cat([order[:important], rest[: k - important]])]

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """In every round, the products of the two halves of what is left."""
        left, flops = count - self._important(kept), 0
        for goes in _rounds(left, kept - self._important(kept)):
            flops += 2 * (left - left // 2) * (left // 2) * width
            left -= goes
        return flops

    def _important(self, k: int) -> int:
        return int(self.important * k + 1e-6)


def _rounds(count: int, left: int) -> list[int]:
    """How many of `count` tokens go in each round until so many are left; none need be compared if none is to be."""
    rounds = []
    while count > left > 0:
        rounds.append(min(count - left, max(1, count // 4)))
        count -= rounds[-1]
    return rounds
