"""ToMe: merge the tokens that are most alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from ..checks import OneOf, setting
from ..errors import UnfitSettings
from ..tokens import VisualTokens
from .base import Acts, Pruner, Selection
from .tower import TowerPruner

Where = Literal["vision", "tokens"]


@dataclass
class ToMe(TowerPruner):
    """Merge the tokens that are most alike, step by step, into averages weighted by the tokens they stand for.

    Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461. A merged token takes the place
    and the position of the token it was merged into; a class token is never merged.

    "vision", as in the paper: in every layer of the vision tower, between attention and MLP, by the keys of that
    attention averaged over its heads; attention counts a merged token as often as the tokens it stands for. The
    tower's later layers, the projector and the LLM all see fewer tokens. As many are merged in one layer as in
    the other, so that exactly the ratio of every tile is left. Where padding is cut off a tile afterwards, as by
    LLaVA-NeXT, what was merged into the padding is cut off with it, and the share of the rest that is kept varies
    from image to image: the report has the number.

    "tokens": on the projector's output, by the features themselves, in rounds that each merge at most half. The
    averages are computed without gradient.

    Args:
        keep, scope, positions: see `Pruner`. In the tower every tile is merged by itself: scope is "view", and
            models that cut an image into tiles take a ratio.
        where: "vision" or "tokens".

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    where: Where = setting("vision", OneOf(get_args(Where)))

    label: ClassVar[str] = 'ToMe(where="vision")'
    instead: ClassVar[str] = 'pass where="tokens"'

    def select(self, tokens: VisualTokens | Tensor) -> Selection:
        """Merge the tokens; with where="vision", the tower has done so and the tokens it merged away are NaN.

        Args:
            tokens: the visual tokens of one image or a batch, or floating [N, d]: one image, one view.

        Returns:
            The rows that others were merged into or that stayed alone, and all fixed rows; with where="tokens"
            exactly `kept_count` rows of every view, and their averages.

        Raises:
            NonFiniteFeatures: some features are NaN or Inf; names the image.
            BadType, BadValue: features are not floating point or not 2-D; with where="vision", they were
                encoded without this method.
        """
        return super().select(tokens) if self.where == "vision" else Pruner.select(self, tokens)

    @property
    def acts(self) -> Acts:
        """In the tower, or with where="tokens" before the LLM."""
        return "in the tower" if self.where == "vision" else "before the LLM"

    @property
    def merges(self) -> bool:  # type: ignore[override]
        """Whether the LLM gets averages in the place of what the encoder made."""
        return self.where == "tokens"

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """Of every round the likeness of both halves, and the sums; what is merged in the tower is not chosen here."""
        flops, n = 0, count if self.where == "tokens" and kept else kept
        while n > kept:
            merges, second = min(n // 2, n - kept), n // 2
            flops += 2 * (n - second) * second * width + 2 * merges * second * (width + 1)
            n -= merges
        return flops

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        return super()._select(tokens, counts) if self.where == "vision" else _merge(tokens, counts)


class Matching(NamedTuple):
    """Which tokens of [B, N] are merged. The even ones are the first set, the odd ones the second.

    Args:
        alone: int64 [B, a - r, 1], tokens of the first set that stay.
        merged: int64 [B, r, 1], tokens of the first set that go.
        into: int64 [B, r], the places in the second set of the tokens that they are merged into.
    """

    alone: Tensor
    merged: Tensor
    into: Tensor

    def survivors(self, values: Tensor) -> Tensor:
        """The values [B, N - r, d], of [B, N, d], of the tokens that stay, the first set before the second."""
        return torch.cat([values.take_along_dim(self.alone, 1), values[:, 1::2]], dim=1)

    def total(self, values: Tensor) -> Tensor:
        """`survivors`, with the values of each merged token added to those of the token it was merged into."""
        second = values[:, 1::2]
        pairs = one_hot(self.into, second.shape[1]).to(values.dtype)
        second = second + pairs.mT @ values.take_along_dim(self.merged, 1)
        return torch.cat([values.take_along_dim(self.alone, 1), second], dim=1)


@torch.no_grad()
def soft_matching(metric: Tensor, merges: int, class_token: bool = False) -> Matching:
    """Bipartite soft matching: every even token has an edge to the odd one it is most like; the best edges count.

    Likeness is cosine similarity; ties go to the lower index.

    Args:
        metric: floating [B, N, d], what the tokens are compared by.
        merges: r, at most half of the tokens without the class token.
        class_token: whether the first token is one, which is never merged.
    """
    with torch.autocast(metric.device.type, enabled=False):
        directions = normalize(metric.float(), dim=-1)
        similarity = directions[:, ::2] @ directions[:, 1::2].mT
    if class_token:
        similarity[:, 0] = -torch.inf
    best = similarity.max(-1)
    order = best.values.sort(descending=True, stable=True).indices
    merged, alone = order[:, :merges], order[:, merges:].sort(-1).values
    return Matching(2 * alone[..., None], 2 * merged[..., None], best.indices.gather(1, merged))


def average(features: Tensor, sizes: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Merge tokens into averages weighted by size, in float32.

    Args:
        features: floating [B, N, d].
        sizes: float32 [B, N, 1], how many tokens each stands for.

    Returns:
        The averages of the tokens that stay, [B, N - r, d] in the features' dtype, and their sizes, [B, N - r, 1].
    """
    with torch.autocast(features.device.type, enabled=False):
        total = matching.total(sizes)
        return (matching.total(features.float() * sizes) / total).to(features.dtype), total


def tokens_after_layers(n: int, k: int, layers: int) -> list[int]:
    """How many of n tokens stay after each layer, so that k stay after the last.

    Every layer merges as many, give or take one, unless the last ones would have to merge more than half.

    Raises:
        UnfitSettings: k cannot be reached by halving n in that many layers.
    """
    if n > k << layers:
        raise UnfitSettings(
            f"{k} of {n} tokens cannot be left after {layers} layers that merge at most half each; accepted is a keep "
            f'that leaves {-(-n >> layers)} or more; pass a larger one, or where="tokens"'
        )
    counts = []
    for after in reversed(range(layers)):
        n = min(n - (n - k) // (after + 1), k << after)
        counts.append(n)
    return counts


def _merge(tokens: VisualTokens, counts: Sequence[int]) -> Selection:
    """Merge within every view until counts[i] tokens are left."""
    kept, features = tokens.fixed, tokens.features.clone()
    for view, k in zip(tokens.views, counts, strict=True):
        if k == 0:
            continue
        own, rows = tokens.features[None, view.rows].float(), view.rows[None, :, None]
        sizes = torch.ones_like(own[..., :1])
        while (n := rows.shape[1]) > k:
            matching = soft_matching(own, min(n // 2, n - k))
            own, sizes = average(own, sizes, matching)
            rows = matching.survivors(rows)
        kept[rows] = True
        features[rows[0, :, 0]] = own[0].to(features.dtype)
    return Selection(kept.nonzero().squeeze(1), features=features[kept])
