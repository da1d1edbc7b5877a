"""Chain: one method before the LLM, another inside it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BadType
from ..tokens import Keep, check_keep
from .base import Acts, Method, Pruner
from .decoder import DecoderPruner


@dataclass
class Chain(Method):
    """What the first method lets reach the LLM, the second drops from inside it: `Chain(GPrune(0.5), FastV(0.4))`.

    The budgets multiply: the second keeps its share of what the first kept. `ImageReport.per_layer` begins with what
    the first kept, and goes on as the second drops.

    Args:
        first: a method that acts before the LLM.
        second: a method that acts inside it.

    Raises:
        BadType: a method acts elsewhere.
        BadValue: the budget of the first is `cover(...)`, of which a share is no budget.
    """

    first: Pruner
    second: DecoderPruner

    def __post_init__(self) -> None:
        for place, kind in (("first", Pruner), ("second", DecoderPruner)):
            if not isinstance(method := getattr(self, place), kind):
                raise BadType(
                    f"{place}={method!r} has no place there; accepted is first a method that acts before the LLM, then "
                    f"one that acts inside it; pass for example Chain(GPrune(keep=0.5), FastV(keep=0.4))"
                )

        check_keep(self.first.keep)

    @property
    def keep(self) -> Keep:  # type: ignore[override]
        """What is left of an image: the product of both budgets."""
        first, second = check_keep(self.first.keep), check_keep(self.second.keep)
        return first * second if isinstance(first, float) else max(1, int(first * second))

    @property
    def acts(self) -> Acts:
        """Where the last of them acts."""
        return self.second.acts

    @property
    def parts(self) -> tuple[Method, ...]:
        """The first method, then the second."""
        return self.first, self.second

    def with_seed(self, seed: int) -> Chain:
        """Both methods drawing with another seed."""
        return Chain(self.first.with_seed(seed), self.second.with_seed(seed))
