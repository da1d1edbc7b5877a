"""Visual tokens, the views they come from, and the budget that says how many of them are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from numbers import Integral
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .checks import Accepted, Between, check_value
from .errors import BadType, BadValue

Mask = Any
"""bool [height, width] of a whole picture, in any resolution: a tensor, a numpy array, nested lists."""


@dataclass(frozen=True, eq=False)
class View:
    """Tokens that are ranked and budgeted together: a base view, a high-resolution grid, a tile, a frame.

    Args:
        rows: int64 [n], ascending rows of `VisualTokens.features`, on the same device.
        grid: (rows, columns) of the view with rows * columns == n, in row-major order; None when unknown.
        image: index of the image, within the `VisualTokens`, that the view belongs to.
        tiles: of a grid that was put together of tiles, how many of its rows are in each row of tiles, and how many of
            its columns in each column of tiles; None: it was not, or that is unknown.

    Raises:
        BadValue: `grid` does not hold exactly the view's tokens, or `tiles` not exactly the grid.
    """

    rows: Tensor
    grid: tuple[int, int] | None = None
    image: int = 0
    tiles: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __post_init__(self) -> None:
        if self.grid is not None and math.prod(self.grid) != len(self):
            raise BadValue(
                f"grid={self.grid} holds {math.prod(self.grid)} tokens but the view has {len(self)}; "
                f"rows * columns must equal the number of tokens; pass grid=None if the layout is unknown"
            )
        if self.tiles is not None and (
            tuple(map(sum, self.tiles)) != self.grid or not all(min(lines, default=0) > 0 for lines in self.tiles)
        ):
            raise BadValue(
                f"tiles={self.tiles} do not make up a grid of {self.grid}; give how many of its rows each row of tiles "
                f"has, and how many of its columns each column, at least 1 each, or leave it out"
            )

    def __len__(self) -> int:
        return self.rows.shape[0]


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The visual tokens of one image, or of several concatenated, as the LLM would receive them.

    Rows that are in no view are *fixed* (newline rows): always kept, and not counted in the budget.

    Args:
        features: floating [N, d], after the projector, in the LLM's embedding space.
        views: the disjoint sets of rows that are ranked and budgeted together.
        sizes: tokens per image, sum N; image i owns a contiguous block of rows, in order.
        signals: what else is known of the tokens, by name: [N, ...], a row for each.
        questions: floating [q, d] per image, the embeddings of the text of its prompt; empty when unknown.
        masks: per image its mask, or None; empty when none has one.

    Raises:
        BadType: features are not floating point.
        BadValue: features are not 2-D or have no width, `sizes` does not add up to N, or there are masks, but not one
            entry for each image.
    """

    features: Tensor
    views: tuple[View, ...]
    sizes: tuple[int, ...]
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    questions: tuple[Tensor, ...] = ()
    masks: tuple[Mask | None, ...] = ()

    def __post_init__(self) -> None:
        _check_features(self.features)
        if sum(self.sizes) != self.features.shape[0]:
            raise BadValue(
                f"sizes={self.sizes} adds up to {sum(self.sizes)} tokens but features has "
                f"{self.features.shape[0]} rows; give the number of tokens of every image, fixed rows too"
            )
        if self.masks and len(self.masks) != len(self.sizes):
            raise BadValue(
                f"masks has {len(self.masks)} entries for {len(self.sizes)} images; give one for each of them, "
                f"None where there is none"
            )

    @classmethod
    def of(cls, features: Tensor, grid: tuple[int, int] | None = None) -> VisualTokens:
        """One image seen as one view: features floating [N, d], all rows prunable."""
        _check_features(features)
        count = features.shape[0]
        return cls(features, (View(torch.arange(count, device=features.device), grid),), (count,))

    @classmethod
    def cat(cls, images: Sequence[VisualTokens]) -> VisualTokens:
        """Concatenate images into a batch: at least one, of equal width d, dtype and device."""
        first_row = accumulate((len(tokens.features) for tokens in images), initial=0)
        first_image = accumulate((len(tokens.sizes) for tokens in images), initial=0)
        views = tuple(
            replace(view, rows=view.rows + row, image=view.image + image)
            for tokens, row, image in zip(images, first_row, first_image, strict=False)
            for view in tokens.views
        )
        sizes = tuple(size for tokens in images for size in tokens.sizes)
        signals = {name: torch.cat([tokens.signals[name] for tokens in images]) for name in images[0].signals}
        questions = tuple(question for tokens in images for question in tokens.questions)
        masks = tuple(mask for tokens in images for mask in tokens.masks or (None,) * len(tokens.sizes))
        return cls(torch.cat([tokens.features for tokens in images]), views, sizes, signals, questions, masks)

    @property
    def fixed(self) -> Tensor:
        """bool [N]: rows that are in no view, and so always kept."""
        fixed = torch.ones(self.features.shape[0], dtype=torch.bool, device=self.features.device)
        fixed[self.rows] = False
        return fixed

    @property
    def rows(self) -> Tensor:
        """int64 [M]: the rows of all views, one view after the other."""
        nothing = torch.empty(0, dtype=torch.int64, device=self.features.device)
        return torch.cat([nothing, *(view.rows for view in self.views)])

    def per_image(self) -> VisualTokens:
        """These tokens with each image's views joined into one, without a grid unless it was alone."""
        joint = []
        for image in range(len(self.sizes)):
            views = [view for view in self.views if view.image == image]
            if len(views) > 1:
                views = [View(torch.cat([view.rows for view in views]).sort().values, image=image)]
            joint += views
        return replace(self, views=tuple(joint))

    def per_tile(self) -> VisualTokens:
        """These tokens with each view that was put together of tiles taken apart, its tiles in row-major order."""
        apart: list[View] = []
        for view in self.views:
            if view.grid is None or view.tiles is None:
                apart.append(view)
                continue
            heights, widths = map(list, view.tiles)
            tiles = [tile for line in view.rows.view(view.grid).split(heights) for tile in line.split(widths, dim=1)]
            apart += [View(tile.flatten(), (tile.shape[0], tile.shape[1]), view.image) for tile in tiles]
        return replace(self, views=tuple(apart))


class Budget(Accepted):
    """A ratio of the tokens or a number of them."""

    def __contains__(self, keep: Any) -> bool:
        return keep >= 1 if isinstance(keep, int) else 0 < keep <= 1

    def __str__(self) -> str:
        return "a float in (0, 1], which is a ratio, or an int >= 1, which is a number of tokens per image"

    def finding(self, keep: Any) -> str:
        """A number keeps no token, a float is no ratio."""
        return "keeps no token" if isinstance(keep, int) else "is not a ratio"

    def remedy(self, keep: Any, default: Any) -> str:
        """A float such as 30.0 may be meant as a number."""
        meant = int in self.kinds and isinstance(keep, float) and keep > 1 and keep.is_integer()
        return f"pass {int(keep)}" if meant else "pass for example 0.3"


@dataclass(frozen=True)
class Cover:
    """The budget `cover(share)`: of every view as few tokens as cover this share of it.

    Args:
        share: in [0, 1], see `gprune.coverage`; of a view with tokens one is always kept.
        at_most: the ratio or number of tokens per image that it stays within, covered or not.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    share: float
    at_most: float | int = 1.0

    def __post_init__(self) -> None:
        check_value("share", self.share, Between(0, 1))
        check_value("at_most", self.at_most, Budget())

    def __repr__(self) -> str:
        return f"cover({self.share}{f', at_most={self.at_most}' if self._bounded else ''})"

    def __str__(self) -> str:
        return f"cover:{self.share}{f':at_most={self.at_most}' if self._bounded else ''}"

    @property
    def _bounded(self) -> bool:
        """Whether `at_most` is less than every token: `1.0` is all of them, `1` is one."""
        return isinstance(self.at_most, int) or self.at_most < 1


def cover(share: float, at_most: float | int = 1.0) -> Cover:
    """A budget that fits the picture, `GraphCover(keep=cover(0.9))`: as few tokens as cover so much of every view.

    Coverage is what `GraphCover` maximises, over its value for all tokens of a view. The method's own order of tokens
    is followed until it is reached, so only methods that order tokens take it.

    Args:
        share: in [0, 1]; of a view with tokens one is always kept.
        at_most: a ratio in (0, 1] or a number of tokens per image that it stays within, covered or not.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """
    return Cover(share, at_most)


Keep = float | int | Cover | Literal["own"]
"""A ratio in (0, 1] as a float, tokens per image as an int, or as many as a picture needs: `1.0` is every token, `1` is
one token, `cover(0.9)` as few as cover 90 %, "own" the number that a method finds itself, where it does."""


def follows_picture(keep: Keep) -> bool:
    """Whether the number of tokens is known only when the picture is."""
    return isinstance(keep, Cover) or keep == "own"


class AnyBudget(Budget):
    """A ratio of the tokens, a number of them, or as many as a picture needs."""

    kinds: tuple[type, ...] = (int, float, Cover)

    def __contains__(self, keep: Any) -> bool:
        return isinstance(keep, Cover) or super().__contains__(keep)

    def __str__(self) -> str:
        return f"{super().__str__()}, or cover(0.9), as many as cover 90 % of a picture"


class OwnBudget(AnyBudget):
    """The same, or the number that the method finds itself."""

    kinds: tuple[type, ...] = (int, float, Cover, str)

    def __contains__(self, keep: Any) -> bool:
        return keep == "own" if isinstance(keep, str) else super().__contains__(keep)

    def __str__(self) -> str:
        return f"{super().__str__()}, or 'own', the number that the method finds itself"


def check_keep(keep: Keep) -> float | int:
    """`keep` where it must be known without the picture.

    Raises:
        BadType, BadValue: it is neither a float in (0, 1] nor an int of at least 1.
    """
    if isinstance(keep, Cover) or keep == "own":
        example = keep.at_most if isinstance(keep, Cover) and keep.at_most != 1.0 else 0.3
        raise BadValue(
            f"keep={keep} depends on what the picture shows, and here the number of tokens must be known before; "
            f"pass a ratio or a number of tokens, for example {example}"
        )
    check_value("keep", keep, Budget())
    return keep


@overload
def kept_count(n: int, keep: Keep) -> int: ...
@overload
def kept_count(n: Sequence[int], keep: Keep) -> list[int]: ...
def kept_count(n: int | Sequence[int], keep: Keep) -> int | list[int]:
    """Number of tokens to keep: the only place that turns a budget into k.

    A ratio applies to each view: `max(1, floor(n * keep + 1e-6))`. A count applies to the image and is
    shared over its views in proportion to their sizes (largest remainder; ties to the earlier view), exact in
    sum and at most all. An empty view keeps 0.

    Args:
        n: tokens of one view, or of each view of *one image*; fixed rows are not counted.
        keep: ratio (float) or tokens per image (int).

    Returns:
        k of the view, or k of each view in the order given.

    Raises:
        BadType, BadValue: `keep` is neither a ratio nor a count, or a view has a negative size.

    Source: the released code of arXiv 2501.02268 takes int(keep * n) per view; the 1e-6 makes 0.7 * 10 be 7.
    """
    keep = check_keep(keep)
    if isinstance(n, (int, Integral)):
        return kept_count([int(n)], keep)[0]
    if any(size < 0 for size in n):
        raise BadValue(f"n={list(n)} has a negative size; a view has 0 or more tokens; pass the views' token counts")
    if isinstance(keep, float):
        return [max(1, math.floor(size * keep + 1e-6)) if size else 0 for size in n]
    total = sum(n)
    if total == 0:
        return [0] * len(n)
    shares = [divmod(min(keep, total) * size, total) for size in n]
    counts = [whole for whole, _ in shares]
    by_remainder = sorted(range(len(n)), key=lambda i: -shares[i][1])
    for i in by_remainder[: min(keep, total) - sum(counts)]:
        counts[i] += 1
    return counts


def _check_features(features: Any) -> None:
    if not isinstance(features, Tensor):
        raise BadType(
            f"features is a {type(features).__name__}; visual tokens are a tensor of PyTorch [N, d]; pass "
            f"torch.as_tensor(features)"
        )
    if features.ndim != 2 or not features.shape[1]:
        raise BadValue(
            f"features has shape {tuple(features.shape)}; visual tokens are a 2-D tensor [N, d], d >= 1; "
            f"for a batch of images build one VisualTokens per image and join them with VisualTokens.cat"
        )
    if not features.is_floating_point():
        raise BadType(
            f"features has dtype {features.dtype}; visual tokens are floating point (after the projector); "
            f"pass features.float() if the numbers are right"
        )
