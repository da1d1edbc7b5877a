"""PuMer: drop the visual tokens that the text looks at least, and merge those of the rest that are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import Between, setting
from .decoder import DecoderMerger, InsideTokens, powers
from .tome import soft_matching

_STAGES = (2 / 12, 5 / 12, 8 / 12)
"""After which share of the layers tokens leave: the paper's layers 2, 5 and 8 of ViLT's 12."""


@dataclass
class PuMer(DecoderMerger):
    """Three times drop what the text attends to least, then merge what is most alike into means.

    Cao, Paranjape and Hajishirzi, "PuMer: Pruning and Merging Tokens for Efficient Vision Language Models", ACL 2023,
    arXiv 2305.17530. A visual token's score is the attention that the text pays it in the layer before, averaged over
    the text and the heads; the lowest are dropped. Of the rest, in order, every second one has an edge to the one
    between them that it is most like, and the best edges are merged, as in `ToMe`.

    The paper does so in encoders that are trained with it; this is untrained, in LLMs. Text is merged there too, apart
    from the image; here it is left alone, since its tokens and positions are the caller's. Had to be decided: only text
    that sees the image counts, which comes after it, and without any the prompt's last token, as in `FastV`; likeness
    is the cosine of the hidden states, as keys are rotated by position; and the numbers follow from `keep`, the same
    share of those before at each of the paper's layers, or those as deep, as in `PyramidDrop`.

    Args:
        keep, match: see `DecoderPruner`.
        dropped: of the tokens that leave, the share that is dropped, in [0, 1]; the others are merged, at most half of
            those that are not dropped. The paper drops 0.1 and merges 0.3 of the rest, which is about a quarter.
    """

    dropped: float = setting(0.25, Between(0, 1))

    reads: ClassVar[bool] = True

    def profile(self, layers: int, share: float) -> list[float]:
        """Powers of the share: 1 up to the first of the three layers, then share, share^2, share^3."""
        return powers(_STAGES, layers, share)

    def stands(self, tokens: InsideTokens, k: int) -> Tensor:
        """The k that stand are those that others were merged into, or that stayed alone; ties go to the lower index."""
        leaving = len(tokens) - k
        merges = min(leaving - int(self.dropped * leaving + 1e-6), k)
        order = tokens.attention_of(tokens.readers).sort(descending=True, stable=True).indices
        left = order[: k + merges].sort().values
        stands = torch.full_like(order, -1)
        stands[left] = left
        if merges:
            matching = soft_matching(tokens.states[None, left], merges)
            stands[left[matching.merged[0, :, 0]]] = left[1::2][matching.into[0]]
        return stands
