"""Pruning by a mask of the picture: its foreground first, or its background first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import BadType, BadValue
from ..tokens import View, VisualTokens
from .base import Need, SetPruner
from .uniform import spread

Mask = Any
"""bool [height, width] of the whole picture, in any resolution: a tensor, a numpy array, nested lists."""


@dataclass
class Foreground(SetPruner):
    """Keep the tokens inside a mask first (the paper's Fig. 1a): those that most of whose area it covers.

    Among tokens that are covered alike, those kept are evenly spaced in row-major order. Every view must show the
    whole picture: families that cut it into tiles are refused.

    Args:
        keep, scope, positions: see `Pruner`.
        mask: of the picture as the processor leaves it, cropped or not; or a mask for each picture of a call, in the
            order of the prompts; or a function of a picture's number, from 0, that returns its mask.

    Raises:
        BadType: there is no mask.
    """

    mask: Mask | Sequence[Mask] | Callable[[int], Mask] = field(default=None, compare=False, repr=False)

    needs: ClassVar[tuple[Need, ...]] = ("place",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is None:
            raise BadType(
                f"{type(self).__name__} has no mask; accepted is a bool array [height, width], one for each picture, "
                f"or a function of the picture's number; pass mask=..."
            )

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """The k rows of `view` with the largest part of their area in the mask: int64 [k].

        Raises:
            BadValue: it is not known where the tokens lie, or the mask is not a picture's.
        """
        if view.grid is None:
            raise BadValue(
                f"{type(self).__name__} must know where tokens lie, but a view of {len(view)} has no grid; give tokens "
                f"of one view with its grid, with scope='view'"
            )
        covered = self.rank(coverage(self._mask_of(view.image, len(tokens.sizes)), view.grid))
        chosen: list[int] = []
        for share in sorted(set(covered.tolist()), reverse=True):
            alike = (covered == share).nonzero().squeeze(1).tolist()
            chosen += [alike[i] for i in spread(len(alike), min(k - len(chosen), len(alike)))]
        return view.rows[torch.tensor(chosen, device=view.rows.device)]

    def rank(self, covered: Tensor) -> Tensor:
        """From the share of its area that the mask covers to what a token is ranked by."""
        return covered

    def _mask_of(self, image: int, images: int) -> Tensor:
        if callable(self.mask):
            return _as_mask(self.mask(image))
        if isinstance(self.mask, Sequence) and not _is_mask(self.mask):
            if len(self.mask) != images:
                raise BadValue(
                    f"mask has masks for {len(self.mask)} pictures but the call has {images}; "
                    f"give one for each, or one for all"
                )
            return _as_mask(self.mask[image])
        return _as_mask(self.mask)


@dataclass
class Background(Foreground):
    """Keep the tokens outside a mask first (the paper's Fig. 1a): those that least of whose area it covers.

    All else is as in `Foreground`.
    """

    def rank(self, covered: Tensor) -> Tensor:
        """The share that the mask leaves out."""
        return 1 - covered


def coverage(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """float64 [rows * columns]: the share of every cell of the grid that is inside the mask, bool [height, width]."""
    down, across = (_overlaps(cells, pixels) for cells, pixels in zip(grid, mask.shape, strict=True))
    return ((down @ mask.long() @ across.T) / mask.numel()).double().flatten()


def _overlaps(cells: int, pixels: int) -> Tensor:
    """int64 [cells, pixels]: how much of each pixel is in each cell; they are `cells` and `pixels` long."""
    starts, ends = (torch.arange(cells) + i for i in (0, 1))
    first, last = (torch.arange(pixels) + i for i in (0, 1))
    begin = torch.maximum(starts[:, None] * pixels, first * cells)
    return (torch.minimum(ends[:, None] * pixels, last * cells) - begin).clamp(min=0)


def _is_mask(values: Sequence[Any]) -> bool:
    """Whether nested sequences are one mask, two deep, not a sequence of them."""
    return bool(values) and isinstance(values[0], Sequence) and not isinstance(values[0][0], Sequence)


def _as_mask(values: Mask) -> Tensor:
    mask = torch.as_tensor(values)
    if mask.ndim != 2 or mask.dtype != torch.bool or not mask.numel():
        raise BadValue(
            f"a mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; accepted is bool [height, width], True "
            f"inside; compare it with a threshold, or take one channel"
        )
    return mask.cpu()
