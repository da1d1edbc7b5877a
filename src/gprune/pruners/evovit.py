"""Evo-ViT: in the vision tower, informative tokens take the slow way, and one token stands for all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .tower import TowerPruner


@dataclass
class EvoViT(TowerPruner):
    """Keep the tokens with the most class attention over the layers; in the tower, the others share one update.

    Xu et al., "Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", AAAI 2022, arXiv 2108.01390. After
    the first third of the layers, each is given the class token, the informative tokens, which are the `keep` with the
    most global class attention, and a representative: the mean of all others, weighted by that attention. What the
    layer adds to the representative is added to each of those. Global class attention is that of the layer, averaged
    over heads, in the first third; then, for informative tokens, half of it and half of what it was. The tokens that
    are informative after the layer whose output becomes the visual tokens are what the LLM receives. Where padding is
    cut off a tile afterwards, as by LLaVA-NeXT, the share of the rest that is kept varies from image to image.

    The paper trains towers so, for classification, and keeps half; this is untrained. Had to be decided: tokens are
    chosen anew in every layer, where its code does so twice, and without a representative in some towers; weights add
    up to one, so that the representative is as long as a token; and in towers without a class token, attention is the
    mean that a token receives in the layer, as in `ClsAttention`.

    Args:
        keep, positions: see `Pruner`. Models that cut an image into tiles take a ratio.
        scope: "view"; every tile is encoded by itself.
    """

    label: ClassVar[str] = "EvoViT"
    instead: ClassVar[str] = "use a method that acts before the LLM, such as ClsAttention"
