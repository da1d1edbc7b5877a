"""V2Drop: drop the visual tokens that a layer of the LLM changes least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .decoder import DecoderPruner, InsideTokens, powers

_STAGES = (3 / 32, 17 / 32, 22 / 32)
"""After which share of the layers tokens are dropped: the paper's layers 3, 17 and 22 of 32."""


@dataclass
class V2Drop(DecoderPruner):
    """After three layers keep the visual tokens whose hidden state changed most, |x_i(l + 1) - x_i(l)|, L2 norm.

    "Variation-aware Vision Token Dropping for Faster Large Vision-Language Models", 2025, arXiv 2509.01552. A token
    that a layer leaves as it is takes no part in the answer. The change is that between the inputs of two layers, the
    last that the token saw and the one it is dropped in front of, so no attention is looked at.

    The layers are the paper's 3, 17 and 22 of 32, or those as deep, the first after one layer at least. What share
    each keeps had to be decided: the same of those before, as in `PyramidDrop`, so that it all comes to `keep`.

    Args:
        keep, match: see `DecoderPruner`.
    """

    looks: ClassVar[bool] = False
    compares: ClassVar[bool] = True

    def profile(self, layers: int, share: float) -> list[float]:
        """Powers of the share: 1 up to the first of the three layers, then share, share^2, share^3."""
        return powers(_STAGES, layers, share)

    def choose(self, tokens: InsideTokens, k: int) -> Tensor:
        """The k tokens that changed most; ties go to the lower index."""
        return tokens.change.sort(descending=True, stable=True).indices[:k]
