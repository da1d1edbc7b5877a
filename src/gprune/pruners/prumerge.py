"""PruMerge: keep the tokens that stand out in the vision tower's attention, and merge into each the nearest removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import Count, OneOf, setting
from ..errors import BadValue
from ..tokens import Keep, OwnBudget, VisualTokens
from .base import Need, Pruner, Selection
from .bat import weighted_means
from .uniform import spread

QUARTERS, FENCE = (0.25, 0.75), 1.5
"""An outlier lies more than 1.5 times the interquartile range above the third quartile."""


@dataclass
class PruMerge(Pruner):
    """Keep the tokens with the most attention; each becomes the mean of itself and the nearest of those removed.

    Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025,
    arXiv 2403.15388. The attention a_i is as in `ClsAttention`; nearness is the product of the keys of the same layer,
    averaged over heads; the mean is weighted by the attention. One removed token may be merged into several, and one
    that is near to none is gone.

    In the paper the number of outliers, a_i > Q3 + 1.5 (Q3 - Q1), is how many are kept of a view; so it is with
    keep="own", but at least one of a view with tokens. Where `keep` says how many, the outliers matter to its variant
    "+" alone (`spatial`): they are kept, and the rest of the budget is spread evenly over the other tokens. Had to be
    decided: weights add up to one, so that a merged token is as long as others; how many tokens are merged into each,
    where a fixed number, as in the paper, mixes what is unlike at a large budget; and that it happens after the
    projector, as the LLM would receive them.

    Args:
        keep, scope, positions: see `Pruner`; keep may be "own".
        spatial: the variant "+", which needs a budget to spread the rest of.
        neighbours: int >= 0, at most so many removed tokens are merged into each that is kept; the paper's k. None
            is as many as there are removed tokens for each that is kept, rounded up.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    keep: Keep = setting(0.3, OwnBudget())
    spatial: bool = setting(False, OneOf((False, True)))
    neighbours: int | None = setting(None, Count(0))

    needs: ClassVar[tuple[Need, ...]] = ("attention", "keys")
    finds_number: ClassVar[bool] = True
    merges = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep == "own" and self.spatial:
            raise BadValue(
                "keep='own' keeps the outliers alone, and spatial=True spreads what they leave of a budget; pass a "
                "ratio or a number of tokens, or spatial=False"
            )

    def _budget(self, tokens: VisualTokens) -> list[int]:
        if self.keep != "own":
            return super()._budget(tokens)
        attention = tokens.signals["attention"].float()
        return [max(1, outliers(attention[view.rows])) if len(view) else 0 for view in tokens.views]

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        attention, keys = tokens.signals["attention"].float(), tokens.signals["keys"].double()
        kept, merged = tokens.fixed, tokens.features.clone()
        for view, k in zip(tokens.views, counts, strict=True):
            if k == 0:
                continue
            features, weights = tokens.features[view.rows], attention[view.rows]
            stays = self._stays(weights, k)
            kept[view.rows[stays]] = True
            neighbours = ceil((len(view) - k) / k) if self.neighbours is None else self.neighbours
            member = nearest_removed(keys[view.rows], stays, neighbours)
            member[torch.arange(k), stays] = True
            merged[view.rows[stays]] = weighted_means(features, weights, member, features[stays])
        rows = kept.nonzero().squeeze(1)
        return Selection(rows, attention.masked_fill(tokens.fixed, torch.nan), features=merged[rows])

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """Of those kept with all, the products of the keys and the means."""
        return 2 * kept * count * (key_width + width)

    def _stays(self, attention: Tensor, k: int) -> Tensor:
        """int64 [k], the tokens of a view that are kept."""
        order = attention.sort(descending=True, stable=True).indices
        if not self.spatial:
            return order[:k]
        first = min(k, outliers(attention))
        rest = order[first:].sort().values
        return torch.cat([order[:first], rest[spread(len(rest), k - first)]])


def outliers(attention: Tensor) -> int:
    """How many tokens of a view, float32 [n], n >= 1, stand out in attention."""
    wide = attention.double()
    lower, upper = wide.quantile(wide.new_tensor(QUARTERS))
    return int((wide > upper + FENCE * (upper - lower)).sum())


def nearest_removed(keys: Tensor, stays: Tensor, count: int) -> Tensor:
    """Which of the tokens removed have the largest products of keys with each that stays: bool [k, n].

    Args:
        keys: float64 [n, dk].
        stays: int64 [k].
        count: at most so many of each; ties go to the lower index.
    """
    near = keys[stays] @ keys.T
    near[:, stays] = -torch.inf
    order = near.sort(dim=-1, descending=True, stable=True).indices[:, : min(count, len(keys) - len(stays))]
    return torch.zeros_like(near, dtype=torch.bool).scatter_(1, order, True)
