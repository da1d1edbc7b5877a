"""VisionZip: keep the tokens the vision tower attends to, and merge the others into a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..kernels.blocks import TILE_PAIRS
from ..tokens import VisualTokens
from .base import Need, Pruner, Selection
from .uniform import spread

CONTEXTUAL, OF = 10, 64
"""The paper's split: of 64 tokens 54 are dominant and 10 contextual, and alike of 128 and 192."""


@dataclass
class VisionZip(Pruner):
    """Keep the dominant tokens, by attention, and merge the rest into contextual tokens, by the similarity of keys.

    Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025,
    arXiv 2412.04467. The attention is as in `ClsAttention`, the keys are those of the same layer, averaged over
    heads. Of k tokens floor(10 k / 64) are contextual. Contextual tokens are spread evenly over the tokens that are not
    dominant; each other token is merged into the one with the nearest key (cosine), as the plain mean of all that
    come together. A merged token stands at the place of the contextual token it was merged into.

    The paper merges what the vision tower puts out; here tokens are merged as the LLM would receive them, after
    the projector.
    """

    needs: ClassVar[tuple[Need, ...]] = ("attention", "keys")
    merges = True

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        attention, keys = tokens.signals["attention"], tokens.signals["keys"]
        kept, merged = tokens.fixed, tokens.features.clone()
        for view, k in zip(tokens.views, counts, strict=True):
            contextual = k * CONTEXTUAL // OF
            order = attention[view.rows].sort(descending=True, stable=True).indices
            kept[view.rows[order[: k - contextual]]] = True
            if contextual:
                rest = view.rows[order[k - contextual :].sort().values]
                targets = torch.tensor(spread(len(rest), contextual), device=rest.device)
                kept[rest[targets]] = True
                groups = nearest(keys[rest], targets)
                merged[rest[targets]] = means(tokens.features[rest], groups, contextual)
        rows = kept.nonzero().squeeze(1)
        return Selection(rows, attention.float().masked_fill(tokens.fixed, torch.nan), features=merged[rows])

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """Of the contextual tokens and all that are not dominant: the likeness of keys, and the means."""
        contextual = kept * CONTEXTUAL // OF
        return 2 * contextual * (count - kept + contextual) * (key_width + width)


def nearest(keys: Tensor, targets: Tensor) -> Tensor:
    """Which of the targets, int64 [m], has the nearest of the keys [n, dk] to each: int64 [n]; a target has itself."""
    groups = most_alike(keys, keys[targets])
    groups[targets] = torch.arange(len(targets), device=targets.device)
    return groups


def most_alike(tokens: Tensor, others: Tensor) -> Tensor:
    """Which of the others [m, d] has the largest cosine with each of the tokens [n, d]: int64 [n]."""
    with torch.autocast(tokens.device.type, enabled=False):
        directions, aims = (normalize(values.float(), dim=-1) for values in (tokens, others))
        parts = directions.split(max(1, TILE_PAIRS // max(1, len(others))))
        return torch.cat([(part @ aims.T).argmax(-1) for part in parts])


def means(features: Tensor, groups: Tensor, count: int) -> Tensor:
    """Mean of the features [n, d] of each of `count` groups, int64 [n]: [count, d]."""
    member = (groups == torch.arange(count, device=groups.device)[:, None]).float()
    with torch.autocast(features.device.type, enabled=False):
        sums = member @ features.float()
    return (sums / member.sum(1, keepdim=True)).to(features.dtype)
