"""FastV: after a few layers keep the visual tokens that get the most attention."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import Count, setting
from .decoder import DecoderPruner, check_layer


@dataclass
class FastV(DecoderPruner):
    """After `layer` layers keep the visual tokens with the most attention, for all layers to come (arXiv 2403.06764).

    The attention is that of the last token of the prompt in the last of these layers, averaged over the heads. All
    else is the paper's: K = `layer`, and its R is 1 minus the share that leaves `keep` on average over the layers,
    (keep * L - K) / (L - K) of L layers.

    Args:
        keep, match: see `DecoderPruner`.
        layer: int >= 1, layers that see all tokens; the paper's K.
    """

    layer: int = setting(2, Count(1))

    def profile(self, layers: int, share: float) -> list[float]:
        """The first layers see all tokens, those after them the share."""
        check_layer("FastV", self.layer, layers)
        return [1.0] * self.layer + [share] * (layers - self.layer)
