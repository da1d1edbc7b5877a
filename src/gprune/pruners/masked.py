"""Pruning by a mask of the picture: its foreground first, or its background first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import BadValue
from ..tokens import Mask, View, VisualTokens
from .base import Need, SetPruner
from .uniform import spread


@dataclass
class Foreground(SetPruner):
    """Keep the tokens inside a mask first (the paper's Fig. 1a): those that most of whose area it covers.

    Among tokens that are covered alike, those kept are evenly spaced in row-major order. Every view must show the
    whole picture: families that cut it into tiles are refused. Each picture has a mask of its own, of the picture as
    the processor leaves it, cropped or not: `run.masks` of a call, `VisualTokens.masks` without a model.

    Args:
        keep, scope, positions: see `Pruner`.
        mask: of every picture that has none of its own.
    """

    mask: Mask | None = field(default=None, compare=False, repr=False)

    needs: ClassVar[tuple[Need, ...]] = ("place", "mask")

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """The k rows of `view` with the largest part of their area in the mask: int64 [k].

        Raises:
            BadValue: there is no mask of the picture, it is not known where the tokens lie, or the mask is not a
                picture's.
        """
        if view.grid is None:
            raise BadValue(
                f"{type(self).__name__} must know where tokens lie, but a view of {len(view)} has no grid; give tokens "
                f"of one view with its grid, with scope='view'"
            )
        covered = self.rank(coverage(self._mask_of(view.image, tokens), view.grid))
        chosen: list[int] = []
        for share in sorted(set(covered.tolist()), reverse=True):
            alike = (covered == share).nonzero().squeeze(1).tolist()
            chosen += [alike[i] for i in spread(len(alike), min(k - len(chosen), len(alike)))]
        return view.rows[torch.tensor(chosen, device=view.rows.device)]

    def rank(self, covered: Tensor) -> Tensor:
        """From the share of its area that the mask covers to what a token is ranked by."""
        return covered

    def _mask_of(self, image: int, tokens: VisualTokens) -> Tensor:
        own = tokens.masks[image] if tokens.masks else None
        mask = self.mask if own is None else own
        if mask is None:
            raise BadValue(
                f"{type(self).__name__} has no mask of image {image}, counted from 0; give one for each image of a "
                f"call, run.masks = [...], or of tokens, VisualTokens(..., masks=...), or mask=... for all"
            )
        return _as_mask(mask)


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


def _as_mask(values: Mask) -> Tensor:
    try:
        mask = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadValue(f"a mask cannot be read ({error}); accepted is bool [height, width], True inside") from error
    if mask.ndim != 2 or mask.dtype != torch.bool or not mask.numel():
        raise BadValue(
            f"a mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; accepted is bool [height, width], True "
            f"inside; compare it with a threshold, or take one channel"
        )
    return mask.cpu()
