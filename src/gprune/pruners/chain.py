"""Chain: one method before the LLM, another inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..tokens import VisualTokens
from .base import Pruner, Selection
from .decoder import DecoderPruner

if TYPE_CHECKING:
    from ..attach import Run


@dataclass(init=False)
class Chain(Pruner):
    """What the first method lets reach the LLM, the second drops from inside it: `Chain(GPrune(0.5), FastV(0.4))`.

    The budgets multiply: the second keeps its share of what the first kept. `ImageReport.per_layer` begins with what
    the first kept, and goes on as the second drops.

    Args:
        first: a method that acts before the LLM.
        second: a method that acts inside it.

    Raises:
        TypeError: a method acts elsewhere.
    """

    first: Pruner = field(kw_only=True)
    second: DecoderPruner = field(kw_only=True)

    def __init__(self, first: Pruner, second: DecoderPruner) -> None:
        for place, method, right in (
            ("first", first, isinstance(first, Pruner) and not isinstance(first, (DecoderPruner, Chain))),
            ("second", second, isinstance(second, DecoderPruner)),
        ):
            if not right:
                raise TypeError(
                    f"{place}={method!r} has no place there; accepted is first a method that acts before the LLM, then "
                    f"one that acts inside it; pass for example Chain(GPrune(keep=0.5), FastV(keep=0.4))"
                )
        product = first.keep * second.keep
        keep = product if isinstance(first.keep, float) else max(1, int(product))
        super().__init__(keep, scope=first.scope, positions=first.positions)
        self.first, self.second = first, second

    @property
    def before_llm(self) -> Pruner:
        """The first method."""
        return self.first

    def select(self, tokens: VisualTokens | Tensor) -> Selection:
        """Impossible, as for the second method alone: raises TypeError."""
        return self.second.select(tokens)

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        return self.select(tokens)

    def hooks(self, run: Run) -> list[RemovableHandle]:
        return [*self.first.hooks(run), *self.second.hooks(run)]
