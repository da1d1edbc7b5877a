"""What the methods share that choose token after token, each time the one that is best next to those before."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..kernels.blocks import budget
from ..kernels.greedy import Objective, greedy
from ..tokens import View, VisualTokens
from .base import SetPruner

VIEWS_TOGETHER = {"cpu": 2**25, "cuda": 2**29}
"""Bytes that views may take, by kind of device, to be gone through together: larger ones gain nothing by it."""


@dataclass
class StepwisePruner(SetPruner):
    """A method that keeps, again and again, the token with the largest gain; ties go to the lower index."""

    ordered: ClassVar[bool] = True

    @abstractmethod
    def at_once(self, device: torch.device, size: int, width: int) -> int:
        """How many views of so many tokens, of this width, are gone through together, if not 0."""

    @abstractmethod
    def in_order(self, tokens: VisualTokens, views: Sequence[View], k: int) -> Tensor:
        """Of B views of N which k tokens are kept: int64 [B, k] in [0, N), in the order chosen."""

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """Again and again the token with the largest gain; ties go to the lower index.

        Returns:
            k rows of `view`, int64 [k], in the order chosen.
        """
        return self.choose_together(tokens, [view], k)[0]

    def choose_together(self, tokens: VisualTokens, views: Sequence[View], k: int) -> Sequence[Tensor]:
        """`choose` for each of some views of equal size, as many in one go as there is room for."""
        features = tokens.features
        together = max(1, self.at_once(features.device, len(views[0]), features.shape[1]))
        chosen: list[Tensor] = []
        with torch.autocast(features.device.type, enabled=False):
            for first in range(0, len(views), together):
                some = views[first : first + together]
                chosen += torch.stack([view.rows for view in some]).gather(1, self.in_order(tokens, some, k))
        return chosen


@dataclass
class GreedyPruner(StepwisePruner):
    """One whose gains are those of an `Objective`."""

    @abstractmethod
    def objective(self, tokens: VisualTokens, views: Sequence[View], k: int) -> Objective:
        """What each token of B views of N would add to those kept, of which there will be k."""

    def at_once(self, device: torch.device, size: int, width: int) -> int:
        """Small views go together: of every one all pairs and the features, in float64."""
        room = min(VIEWS_TOGETHER.get(device.type, VIEWS_TOGETHER["cpu"]), budget(device))
        return room // (8 * size * (size + width))

    def in_order(self, tokens: VisualTokens, views: Sequence[View], k: int) -> Tensor:
        """By the objective."""
        return greedy(self.objective(tokens, views, k), k)


def features_of(tokens: VisualTokens, views: Sequence[View]) -> Tensor:
    """Those of views of equal size, floating [B, N, d]."""
    return tokens.features[torch.stack([view.rows for view in views])]
