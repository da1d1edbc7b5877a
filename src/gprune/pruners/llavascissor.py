"""LLaVA-Scissor: of a video, a token for each component of its similarity graph, in every frame and then over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..kernels.blocks import budget
from ..kernels.forest import components, first_of_each, spanning_forest
from ..kernels.gram import Gram, gram_flops
from ..tokens import VisualTokens
from .base import Selection
from .clip import ClipPruner, frames_of, group_sums
from .visionzip import most_alike


@dataclass
class LLaVAScissor(ClipPruner):
    """Keep the mean of every connected component of tokens that are alike, over space and then over time.

    Sun et al., "LLaVA-Scissor: Token Compression with Semantic Connected Components for Video LLMs", 2025,
    arXiv 2506.21862. Tokens are joined where their cosine reaches a threshold, wherever they lie, as in G-Prune's
    graph; where G-Prune ranks tokens by that graph, here each of its connected components becomes one token. That is
    done in every frame, and then once more with the means of all frames' components. At last each token of the clip is
    merged into the nearest by cosine of the means that are left: a mean becomes that of itself and all those tokens.

    In the paper one threshold, which is set, says how many are left. Here the budget is exact, and each step has the
    threshold of its own that leaves exactly so many components: k at the end, and after the first step the
    geometric mean of k and the n tokens of the clip, so that both steps leave the same share of what they get; at least
    one of each frame. Of equally similar pairs the earlier are joined. Had to be decided too: components are found
    exactly, and not in a sample of the tokens; a token of norm 0 has cosine 0 with all; and a component stands at
    the place of its token with the most edges.

    Args:
        keep, scope, positions: see `ClipPruner`.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    merges = True

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        kept, merged = tokens.fixed, tokens.features.clone()
        for view, k in zip(tokens.views, counts, strict=True):
            if k == len(view):
                kept[view.rows] = True
            elif k:
                frames = frames_of(tokens, view)
                rows = view.rows[torch.cat(frames)]
                stands, means = self._represent(tokens.features[rows].double(), [len(frame) for frame in frames], k)
                kept[rows[stands]] = True
                merged[rows[stands]] = means.float().to(merged.dtype)
        rows = kept.nonzero().squeeze(1)
        return Selection(rows, features=merged[rows])

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """The products of all pairs in both steps, and of all tokens with the means that are left."""
        if kept in (0, count):
            return 0
        return gram_flops(count, width) + gram_flops(isqrt(kept * count), width) + 2 * kept * count * width

    def _represent(self, features: Tensor, sizes: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
        """Which k tokens of a clip stand for all, int64 [k], and what they become, float64 [k, d].

        Args:
            features: float64 [n, d], frame by frame.
            sizes: tokens of each frame.
            k: less than n.
        """
        stands, means = component_means(features, sizes, max(len(sizes), isqrt(k * len(features))))
        chosen, means = component_means(means, [len(means)], k)
        sums, merged = group_sums(features, most_alike(features, means), k)
        return stands[chosen], (means + sums) / (1 + merged)


def component_means(features: Tensor, sizes: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """Of exactly so many connected components: which token stands for each, int64 [count], and its mean, [count, d].

    Args:
        features: float64 [n, d], of one block of tokens after the other; those of different blocks are never joined.
        sizes: tokens of each block.
        count: from the number of blocks to n.
    """
    with torch.autocast(features.device.type, enabled=False):
        room = budget(features.device) // len(sizes)
        similarity = [Gram(part, _cosine, room) for part in normalize(features, dim=-1).split(list(sizes))]
        edges, weights = spanning_forest(similarity)
        joined = len(features) - count
        threshold = weights[joined - 1] if joined else torch.inf
        degrees = torch.cat([(rows >= threshold).sum(-1) for block in similarity for _, rows in block.parts()])
    member = components(len(features), edges[:, :joined]).unique(return_inverse=True)[1]
    sums, members = group_sums(features, member, count)
    return first_of_each(member, degrees.argsort(descending=True, stable=True)), sums / members


def _cosine(products: Tensor) -> Tensor:
    """In float32, so that copies are equally similar, and each to the other."""
    return products.clamp_(max=1).float()
