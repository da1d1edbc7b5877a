"""DivPrune: keep the tokens that differ most from one another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..tokens import View, VisualTokens
from .base import SetPruner


@dataclass
class DivPrune(SetPruner):
    """Keep tokens whose smallest cosine distance to one another is large: greedy max-min diversity.

    Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025,
    arXiv 2503.02175. A larger ratio keeps all that a smaller one does.
    """

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """First the token that is farthest from its nearest neighbour, then again and again the one that is
        farthest from those chosen before; ties go to the lower index.

        A token whose norm is 0 points nowhere: its cosine similarity to every other is 0.

        Returns:
            k rows of `view`, int64 [k], in the order chosen.
        """
        features = tokens.features[view.rows]
        with torch.autocast(features.device.type, enabled=False):
            directions = normalize(features.float(), dim=-1)
            cosine = directions @ directions.T
        farthest = cosine.fill_diagonal_(-torch.inf).amax(-1).argmin(-1, keepdim=True)
        # A chosen token is infinitely near to itself, so it is never chosen again.
        cosine.fill_diagonal_(torch.inf)
        nearest = torch.full_like(cosine[0], -torch.inf)
        chosen = []
        for _ in range(k):
            chosen.append(farthest)
            nearest = torch.maximum(nearest, cosine.index_select(0, farthest)[0])
            farthest = nearest.argmin(-1, keepdim=True)
        return view.rows[torch.cat(chosen)]
