"""ApET: keep the tokens that a few others reconstruct worst, and merge the rest into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import Count, setting
from ..tokens import VisualTokens
from .base import Pruner, Selection
from .visionzip import means, nearest

ROUNDING = 1e-9
"""A share of a token, or of the largest direction of the basis, that is rounding."""


@dataclass
class ApET(Pruner):
    """Keep the tokens with the largest approximation error |x_i - B w_i|, and merge others into the nearest of them.

    Ma et al., "ApET: Approximation-Error Guided Token Compression for Efficient VLMs", CVPR 2026, arXiv 2602.19870. B
    are M basis tokens, found by farthest-point sampling, and w_i the least-squares weights by which they reconstruct
    token i. A token that they reconstruct says nothing new. No attention is needed.

    The paper does so after the vision tower or in a layer of the LLM; here it is done once, with the tokens as the LLM
    would receive them. Had to be decided: the distance of the sampling is that of the features, and it begins with the
    token farthest from the mean of its view; the basis tokens, whose error is 0, are merged like others;
    the nearest is that of the largest cosine, and a merged token the plain mean of all that come together.

    Args:
        keep, scope, positions: see `Pruner`.
        basis: int >= 1, the paper's M.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    basis: int = setting(10, Count(1))

    merges = True

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        kept, merged = tokens.fixed, tokens.features.clone()
        scores = torch.full_like(kept, torch.nan, dtype=torch.float32)
        for view, k in zip(tokens.views, counts, strict=True):
            if k == 0:
                continue
            features = tokens.features[view.rows]
            error = approximation_error(features.double(), self.basis)
            stays = error.sort(descending=True, stable=True).indices[:k].sort().values
            scores[view.rows] = error.float()
            kept[view.rows[stays]] = True
            merged[view.rows[stays]] = means(features, nearest(features, stays), k)
        rows = kept.nonzero().squeeze(1)
        return Selection(rows, scores, features=merged[rows])

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The reconstruction, and the likeness of all with those kept and the means."""
        return 4 * min(self.basis, count, width) * count * width + 4 * kept * count * width


def approximation_error(features: Tensor, basis: int) -> Tensor:
    """How far each token lies from all that is a sum of multiples of some: float64 [N] of float64 [N, d].

    Args:
        features: N >= 1.
        basis: how many those are, if there are so many.
    """
    sampled = features[farthest_points(features, min(basis, len(features)))]
    _, sizes, directions = torch.linalg.svd(sampled, full_matrices=False)
    directions *= (sizes > ROUNDING * sizes[0])[:, None]
    error = (features - features @ directions.T @ directions).norm(dim=-1)
    return error.where(error > ROUNDING * features.norm(dim=-1), 0)


def farthest_points(features: Tensor, count: int) -> Tensor:
    """The row farthest from the mean, then ever again the one farthest from the chosen: int64 [count] of [N, d]."""
    distance = (features - features.mean(0)).square().sum(-1)
    closest = torch.full_like(distance, torch.inf)
    chosen = []
    for _ in range(count):
        chosen.append(distance.argmax(-1, keepdim=True))
        closest = torch.minimum(closest, (features - features[chosen[-1]]).square().sum(-1))
        distance = closest
    return torch.cat(chosen)
