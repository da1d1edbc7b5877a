"""Chain: one method after the other, each where it acts."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BadType
from ..tokens import Keep, check_keep
from .base import Acts, Method, Pruner
from .decoder import DecoderPruner
from .pixeldedup import PixelDedup


@dataclass
class Chain(Method):
    """What the first method leaves, the second drops from: `Chain(GPrune(0.5), FastV(0.4))`.

    The budgets multiply: the second keeps its share of what the first kept. `ImageReport.per_layer` begins with what
    the first kept, and goes on as a second inside the LLM drops. After `PixelDedup` come methods before the LLM too,
    `Chain(PixelDedup(), GraphCover(0.3))`: to them, what it left out does not exist, and a view that lacks tokens has
    no grid.

    Args:
        first: `PixelDedup`, or a method that acts before the LLM.
        second: a method that acts inside the LLM, or after `PixelDedup` before it.

    Raises:
        BadType: a method acts elsewhere.
        BadValue: the budget of the first is `cover(...)`, of which a share is no budget.
    """

    first: Pruner | PixelDedup
    second: DecoderPruner | Pruner

    def __post_init__(self) -> None:
        second = (DecoderPruner, Pruner) if isinstance(self.first, PixelDedup) else (DecoderPruner,)
        for place, kinds in (("first", (Pruner, PixelDedup)), ("second", second)):
            if not isinstance(method := getattr(self, place), kinds):
                raise BadType(
                    f"{place}={method!r} has no place there; accepted is first a method that acts before the LLM, then "
                    f"one that acts inside it, or first PixelDedup, then either; pass for example "
                    f"Chain(GPrune(keep=0.5), FastV(keep=0.4))"
                )

        check_keep(self.first.keep)

    @property
    def keep(self) -> Keep:  # type: ignore[override]
        """What is left of an image: the product of both budgets; the second's, where that is no ratio."""
        first, second = check_keep(self.first.keep), self.second.keep
        if not isinstance(second, float):
            return second
        return first * second if isinstance(first, float) else max(1, int(first * second))

    @property
    def acts(self) -> Acts:
        """Where the last of them acts."""
        return self.second.acts

    @property
    def keeps_all(self) -> bool:
        """Whether neither drops anything whatever the image."""
        return self.first.keeps_all and self.second.keeps_all

    @property
    def parts(self) -> tuple[Method, ...]:
        """The first method, then the second."""
        return self.first, self.second

    def with_seed(self, seed: int) -> Chain:
        """Both methods drawing with another seed."""
        return Chain(self.first.with_seed(seed), self.second.with_seed(seed))
