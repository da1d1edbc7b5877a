"""What was kept of each image."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import BadValue
from ..pruners.base import Selection
from ..pruners.decoder import layer_cost, share_at_cost
from ..tokens import View

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False, repr=False)
class ImageReport:
    """What was kept of one image; all tensors on the CPU, all rows counted within the image.

    Args:
        kept: int64 [n_after], sorted rows that the LLM sees to its last layer, fixed rows included.
        views: the views of the image, which were ranked apart unless the method says otherwise.
        scores: float32 [n_before], NaN on fixed rows; None for methods without scores.
        n_before, n_after: visual tokens of the image, fixed rows included.
        edge_share: share of all pairs of tokens that are edges, over the views; None for methods without a
            graph.
        coverage: share of the image that is covered, the least of its views; None unless `keep` is `cover(...)`.
        per_layer: visual tokens of the image in each layer of the LLM; None: `n_after` in all of them.
        pair_cost: FLOPs of attention between two tokens, over the FLOPs of one token's matrix products in a layer.
        whole: every view is known to show the whole picture; not so of tiles and of frames of a video.
    """

    kept: Tensor
    views: tuple[View, ...]
    scores: Tensor | None
    n_before: int
    n_after: int
    edge_share: float | None
    coverage: float | None = None
    per_layer: tuple[int, ...] | None = None
    pair_cost: float = 0.0
    whole: bool = False

    def __repr__(self) -> str:
        return f"ImageReport({self.summary}; {self._views})"

    def _repr_html_(self) -> str:
        return f"<p>{self.summary}; {self._views}</p>"

    @property
    def fixed(self) -> int:
        """How many tokens are in no view and always stay, such as those at the ends of rows."""
        return self.n_before - sum(map(len, self.views))

    @property
    def summary(self) -> str:
        """How many tokens were kept, in words; of those that every method keeps, how many they are."""
        words = f"{self.n_after} of {self.n_before} tokens kept"
        if self.per_layer is not None:
            words += f" in the last layer of the LLM, {self.ratio:.0%} on average over its layers"
        elif self.fixed:
            words += f", {self.fixed} of them ends of rows or the like, which always stay"
        return words

    @property
    def _views(self) -> str:
        names = [f"{len(view)} tokens" if view.grid is None else "{} x {}".format(*view.grid) for view in self.views]
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        return f"{len(names)} view{'s' * (len(names) != 1)}: {shown}" if names else "no views"

    def show(self, image: Image.Image, processor: Any = None) -> Image.Image:
        """The picture, and beside it every view with what was dropped striped.

        Args:
            image: the picture that the report is of.
            processor: of the model; needed where it crops pictures to their centre, as that of LLaVA-1.5 does.

        Returns:
            An RGB picture.

        Raises:
            BadValue: the views are tiles or frames, of which the report does not know what they show.
            ValueError: a view whose grid is unknown.
            ImportError: matplotlib is not installed.
        """
        from ..draw import centre_crop, draw
        from ..images import to_rgb

        if not self.whole:
            raise BadValue(
                "the views of this report are tiles of a picture or frames of a video, and it does not know what each "
                "shows; accepted are reports of whole pictures; for tiles call gprune.draw.draw(image, [('kept', "
                "report)], tiles=gprune.draw.tiles_of(model, inputs))"
            )
        box = None if processor is None else centre_crop(processor, image.size)
        return draw(to_rgb(image), [("kept", self)], box=box)

    @property
    def ratio(self) -> float:
        """Share of the visual tokens that is left, on average over the layers of the LLM."""
        counts = self.per_layer or (self.n_after,)
        return sum(counts) / len(counts) / self.n_before

    @property
    def flops_ratio(self) -> float:
        """Share of the visual tokens that a method before the LLM would keep at the same cost.

        The cost is that of this image's visual tokens in the LLM's prefill: n of them cost a layer n + pair_cost n^2.
        """
        if self.per_layer is None:
            return self.ratio
        mean = sum(layer_cost(count, self.pair_cost) for count in self.per_layer) / len(self.per_layer)
        return share_at_cost(mean, self.pair_cost) / self.n_before

    @property
    def grids(self) -> tuple[tuple[int, int] | None, ...]:
        """(rows, columns) of each view, None where unknown."""
        return tuple(view.grid for view in self.views)

    @property
    def grid(self) -> tuple[tuple[int, int] | None, ...]:
        """The former name of `grids`; using it warns, and it will go."""
        warnings.warn("ImageReport.grid is now ImageReport.grids; use that", DeprecationWarning, stacklevel=2)
        return self.grids


def report_images(
    selection: Selection,
    sizes: Sequence[int],
    views: Sequence[View],
    ranked: Sequence[View],
    per_layer: Sequence[tuple[int, ...]] | None = None,
    pair_cost: float = 0.0,
    *,
    whole: bool = False,
) -> list[ImageReport]:
    """One report per image of a batch.

    Args:
        selection: over the whole batch.
        sizes: tokens per image.
        views: of the layout, rows counted within the batch.
        ranked: the views that were ranked, to which the shares of the selection belong: the same, one per image, or
            their tiles.
        per_layer, pair_cost: of each image, where tokens were dropped inside the LLM.
        whole: every view is known to show the whole picture.
    """
    kept = selection.kept.cpu()
    scores = None if selection.scores is None else selection.scores.cpu()
    reports = []
    for image, (size, end) in enumerate(zip(sizes, accumulate(sizes), strict=True)):
        start = end - size
        own = kept[(kept >= start) & (kept < end)] - start
        reports.append(
            ImageReport(
                kept=own,
                views=tuple(replace(v, rows=v.rows.cpu() - start, image=0) for v in views if v.image == image),
                scores=None if scores is None else scores[start:end],
                n_before=size,
                n_after=len(own),
                edge_share=_edge_share(selection.edge_share, ranked, image),
                coverage=_least(selection.coverage, ranked, image),
                per_layer=None if per_layer is None else per_layer[image],
                pair_cost=pair_cost,
                whole=whole,
            )
        )
    return reports


def _edge_share(shares: Tensor | None, ranked: Sequence[View], image: int) -> float | None:
    if shares is None:
        return None
    pairs = [len(view) * (len(view) - 1) if view.image == image else 0 for view in ranked]
    total = sum(pairs)
    return sum(n * share for n, share in zip(pairs, shares.tolist(), strict=True)) / total if total else 0.0


def _least(shares: Tensor | None, ranked: Sequence[View], image: int) -> float | None:
    if shares is None:
        return None
    return min((share for view, share in zip(ranked, shares.tolist(), strict=True) if view.image == image), default=1.0)
