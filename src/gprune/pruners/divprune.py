"""DivPrune: keep the tokens that differ most from one another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..graph import MAX_MEMORY
from ..kernels.blocks import gram, nearest
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
        with torch.autocast(tokens.features.device.type, enabled=False):
            directions = normalize(tokens.features[view.rows].float(), dim=-1)
            return view.rows[farthest_first(directions, k)]


def farthest_first(directions: Tensor, k: int, max_memory: int = MAX_MEMORY["cpu"]) -> Tensor:
    """Greedy max-min over float32 [N, d], k of them: int64 [k], in the order chosen.

    Args:
        directions: of norm 1 or 0.
        k: at most N.
        max_memory: bytes that all similarities may take; where they take more, each row is computed when it is needed.
    """
    count = len(directions)
    cosine = gram(directions) if count * count * directions.element_size() <= max_memory else None
    farthest = (nearest(directions) if cosine is None else _others(cosine)).argmin(-1, keepdim=True)
    closest = torch.full_like(directions[:, 0], -torch.inf)
    chosen = []
    for _ in range(k):
        chosen.append(farthest)
        if cosine is None:
            row = directions @ directions.index_select(0, farthest)[0]
        else:
            row = cosine.index_select(0, farthest)[0]
        # Infinitely near to itself, so that it is never chosen again.
        closest = torch.maximum(closest, row).index_fill_(0, farthest, torch.inf)
        farthest = closest.argmin(-1, keepdim=True)
    return torch.cat(chosen)


def _others(cosine: Tensor) -> Tensor:
    """The largest similarity of each token to another: [N] of [N, N], whose diagonal is lost."""
    return cosine.fill_diagonal_(-torch.inf).amax(-1)
