"""Pruning by the attention of the vision tower: the tokens it looks at are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..tokens import VisualTokens
from .base import Need, ScorePruner


@dataclass
class ClsAttention(ScorePruner):
    """Keep the tokens that the class token of the vision tower attends to most, averaged over heads.

    Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations"
    (EViT), ICLR 2022, arXiv 2202.07800, within the tower; Zhang et al., "[CLS] Attention is All You Need for
    Training-Free Visual Token Pruning" (FasterVLM), arXiv 2412.01818, of what it gives to the LLM, as here.

    The attention is that of the layer whose output becomes the visual tokens. In towers without a class token it
    is the mean that a token receives from all others. Where a token stands for several patches, it has their mean.
    """

    needs: ClassVar[tuple[Need, ...]] = ("attention",)

    def score(self, tokens: VisualTokens) -> Tensor:
        """The attention that every token receives: float32 [N], NaN on fixed rows."""
        return tokens.signals["attention"].float()
