"""DivPrune: keep the tokens that differ most from one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..kernels.gram import Gram, gram_flops
from ..tokens import View, VisualTokens
from .base import SetPruner


@dataclass
class DivPrune(SetPruner):
    """Keep tokens whose smallest cosine distance to one another is large: greedy max-min diversity.

    Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025,
    arXiv 2503.02175. A larger ratio keeps all that a smaller one does.
    """

    ordered: ClassVar[bool] = True

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """Choose the token farthest from its nearest neighbour, then ever again the one farthest from those chosen.

        Ties go to the lower index. A token whose norm is 0 points nowhere: its cosine similarity to every other is 0.

        Returns:
            k rows of `view`, int64 [k], in the order chosen.
        """
        with torch.autocast(tokens.features.device.type, enabled=False):
            directions = normalize(tokens.features[view.rows].float(), dim=-1)
            return view.rows[farthest_first(directions, k)]

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs."""
        return gram_flops(count, width) if kept else 0


def farthest_first(directions: Tensor, k: int, max_memory: int | None = None) -> Tensor:
    """Greedy max-min over float32 [N, d], k of them: int64 [k], in the order chosen.

    Args:
        directions: of norm 1 or 0.
        k: at most N.
        max_memory: see `Gram`.
    """
    cosine = Gram(directions, max_memory=max_memory)
    farthest = cosine.nearest().argmin(-1, keepdim=True)
    closest = torch.full_like(directions[:, 0], -torch.inf)
    chosen = []
    for _ in range(k):
        chosen.append(farthest)
        # Infinitely near to itself, so that it is never chosen again.
        closest = torch.maximum(closest, cosine.rows(farthest)[0]).index_fill_(0, farthest, torch.inf)
        farthest = closest.argmin(-1, keepdim=True)
    return torch.cat(chosen)
