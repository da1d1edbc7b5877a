"""Auto: the method that gprune recommends, by how much is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..tokens import Cover, View, VisualTokens
from .base import SetPruner
from .graphcover import GraphCover
from .graphvote import GraphVote

FEW = 1 / 6
"""Share of a view's tokens below which `GraphCover` chooses."""


@dataclass
class Auto(SetPruner):
    """Keep of every region its share, as `GraphVote` does, or where few tokens are kept the best cover of `GraphCover`.

    With many tokens to keep, a cover is complete early, and what is left of its budget goes to the rarest tokens;
    votes give large regions theirs. With few, there is not a token for every region, and it matters more that none is
    far from one that is kept. The passage lies at a sixth of a view's tokens, between the 20 % at which the two answer
    alike on validation pictures of the embedded benchmark and the 15 % from which `GraphCover` is ahead
    (docs/methods.md). On each side of it a larger ratio keeps all that a smaller one does. With `cover(...)` it is
    `GraphCover`.
    """

    ordered: ClassVar[bool] = True

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """What the method for this share chooses: k rows of `view`, int64 [k]."""
        return self._method(len(view), k).choose(tokens, view, k)

    def choose_together(self, tokens: VisualTokens, views: Sequence[View], k: int) -> Sequence[Tensor]:
        """`choose` for each of some views of equal size."""
        return self._method(len(views[0]), k).choose_together(tokens, views, k)

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """Those of the method for this share."""
        return self._method(count, kept).selection_flops(count, kept, width, key_width)

    def _method(self, count: int, kept: int) -> SetPruner:
        covers = isinstance(self.keep, Cover) or kept < FEW * count
        return GraphCover() if covers else GraphVote()
