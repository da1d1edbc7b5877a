"""What methods for videos share: a view is a frame, and the frames of a video have one budget."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import OneOf, setting
from ..tokens import View, VisualTokens
from .base import Need, Pruner, Scope, Selection

FRAME = "frame"
"""The signal that says of which view each token is: int64 [N], -1 of fixed rows."""


@dataclass
class ClipPruner(Pruner):
    """A method that looks at the frames of a video together; what it chooses from still tells them apart (`frames_of`).

    Args:
        keep, positions: see `Pruner`.
        scope: "image", the default here, is one budget over the clip; with "view" every frame is a clip of its own.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    _: KW_ONLY
    scope: Scope = setting("image", OneOf(("image", "view")))

    needs: ClassVar[tuple[Need, ...]] = ("frames",)

    def select(self, tokens: VisualTokens | Tensor) -> Selection:
        """Choose the tokens to keep; no model needed.

        Args:
            tokens: the visual tokens of one video or several, a view for every frame, in order; what is given as a
                tensor is one frame.

        Returns:
            Exactly `kept_count` rows of every video, or with scope="view" of every frame, and all fixed rows.

        Raises:
            NonFiniteFeatures: some features are NaN or Inf; names the video as image.
            BadType, BadValue: features are not floating point or not 2-D, or the tokens come without what the
                method needs beside them.
        """
        if isinstance(tokens, Tensor):
            tokens = VisualTokens.of(tokens)
        # Before the frames of a video become one.
        return super().select(replace(tokens, signals={**tokens.signals, **self.told(tokens)}))

    def told(self, tokens: VisualTokens) -> dict[str, Tensor]:
        """What is to be known of the tokens that only their frames tell, by name: [N, ...], a row for each."""
        frame = torch.full_like(tokens.features[:, 0], -1, dtype=torch.int64)
        for number, view in enumerate(tokens.views):
            frame[view.rows] = number
        return {FRAME: frame}


def frames_of(tokens: VisualTokens, view: View) -> tuple[Tensor, ...]:
    """Which tokens of a clip are of each frame that has any, in order: int64 [n] each, indices into `view.rows`."""
    frame = tokens.signals[FRAME][view.rows]
    return frame.argsort(stable=True).split(frame.unique(return_counts=True)[1].tolist())


def group_sums(features: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sum of the features of each of `count` groups, and how many they are: float64 [count, d], int64 [count, 1].

    In float64, so that the order in which a GPU adds does not show once the result is rounded.

    Args:
        features: float64 [n, d].
        groups: int64 [n], of each.
    """
    sums = features.new_zeros(count, features.shape[1]).index_add_(0, groups, features)
    return sums, groups.bincount(minlength=count)[:, None]
