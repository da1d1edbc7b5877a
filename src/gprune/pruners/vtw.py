"""VTW: withdraw all visual tokens after a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import UnfitSettings
from .decoder import DecoderPruner, layer_cost, share_at_cost


@dataclass
class VTW(DecoderPruner):
    """Visual tokens withdrawal: no visual token is left after the first K layers (arXiv 2405.05803).

    K follows from `keep`: the nearest number of layers, K = round(keep * L) of L layers; `ImageReport.ratio` is what
    it came to. The paper finds K on a small set of samples; half of the layers is a usual outcome.

    Args:
        keep, match: see `DecoderPruner`.
    """

    looks: ClassVar[bool] = False

    def profile(self, layers: int, share: float) -> list[float]:
        """A first part of the layers sees all tokens, those after it see none."""
        seeing = round(share * layers)
        return [1.0] * seeing + [0.0] * (layers - seeing)

    def schedule(self, layers: int, pair_cost: float = 0.0) -> list[float]:
        """The first K layers see all tokens, those after them none."""
        pair_cost = pair_cost if self.match == "flops" else 0.0
        profile = self.profile(layers, layer_cost(self.keep, pair_cost) / layer_cost(1, pair_cost))
        if not any(profile):
            least = share_at_cost(0.5 / layers * layer_cost(1, pair_cost), pair_cost)
            raise UnfitSettings(
                f"VTW(keep={self.keep}) would show an LLM of {layers} layers no visual token at all; the smallest keep "
                f"is one layer, just above {least:.4g}; pass more, for example keep=0.5"
            )
        return profile
