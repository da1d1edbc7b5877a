"""Pictures of the views of one image that can be clicked: patches kept, scores, neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..attach import ImageReport
from ..draw import Box, checked_grids, faded, heated, on_canvas

MAX_SHEETS = 2
"""Pictures for one image."""

_GAP = 8
_BETWEEN = (128, 128, 128)  # which is seen on a light page and on a dark one
_CLICKED, _NEAR = (230, 0, 60), (255, 150, 0)
_TWO_VIEWS = ("base view", "high-resolution grid")


@dataclass(frozen=True)
class Patch:
    """A patch of a view: `index` is that of its token within the view, row by row."""

    view: int
    row: int
    column: int
    index: int


@dataclass(frozen=True)
class Drawing:
    """A picture, and what it shows in words, which stand beside it: nothing is written into its pixels."""

    picture: Image.Image
    caption: str


class Sheet:
    """Views of one image, laid out as one picture.

    Args:
        picture: as the processor got it, RGB.
        report: of any method; its views tell the grids.
        box: see `gprune.draw.draw`.
        tiles: the part of the picture that each view covers, where a model cuts it into tiles.
        views: those that are shown.

    Raises:
        ValueError: a view whose grid is unknown, or fewer tiles than views.
    """

    def __init__(
        self,
        picture: Image.Image,
        report: ImageReport,
        box: Box | None,
        tiles: Sequence[Image.Image],
        views: Sequence[int],
    ) -> None:
        grids = checked_grids([report], [])
        if tiles and len(tiles) < len(report.views):
            raise ValueError(f"there are {len(tiles)} tiles for {len(report.views)} views; the views cannot be drawn")
        self.grids = {i: grids[i] for i in views if i in grids}
        parts: list[tuple[Image.Image, Box | None]] = [(tile, None) for tile in tiles]
        parts = parts or [(picture, box)] * len(report.views)
        self.canvases = {i: on_canvas(parts[i][0], parts[i][1] or (0, 0, *parts[i][0].size)) for i in self.grids}
        self._named = len(report.views) == len(_TWO_VIEWS) and not tiles
        sizes = [canvas.size for canvas, _ in self.canvases.values()]
        width, height = max(x for x, _ in sizes) + _GAP, max(y for _, y in sizes) + _GAP
        across = math.isqrt(len(sizes) - 1) + 1
        self._places = {i: (n % across * width, n // across * height) for n, i in enumerate(self.grids)}
        self._size = (across * width - _GAP, -(-len(sizes) // across) * height - _GAP)

    def name(self, view: int) -> str:
        """What a view is called."""
        rows, columns = self.grids[view]
        name = _TWO_VIEWS[view] if self._named else f"view {view + 1}"
        return f"{name}, {rows} x {columns}"

    def kept(self, report: ImageReport, merged: bool = False) -> Drawing:
        """The image with all that was not kept striped, as dropped or as `merged` into what was; see `faded`."""
        masks = {
            i: np.isin(report.views[i].rows.numpy(), report.kept.numpy()).reshape(grid)
            for i, grid in self.grids.items()
        }
        counts = ", ".join(f"{mask.sum()} of {mask.size}" for mask in masks.values())
        drawn = {i: faded(canvas, masks[i], area, merged) for i, (canvas, area) in self.canvases.items()}
        return Drawing(self._laid_out(drawn), f"{self._title}: {counts}")

    def heat(self, report: ImageReport) -> Drawing:
        """The image in grey under the scores of a report that has them, bright where high."""
        assert report.scores is not None
        drawn = {
            i: heated(canvas, report.scores[report.views[i].rows].reshape(self.grids[i]).numpy(), area)
            for i, (canvas, area) in self.canvases.items()
        }
        return Drawing(self._laid_out(drawn), self._title)

    def around(self, patch: Patch, neighbours: np.ndarray, nearest: Sequence[int]) -> Drawing:
        """The view of a patch with all but its neighbours, bool [n], striped; itself and the nearest are framed."""
        canvas, area = self.canvases[patch.view]
        grid = self.grids[patch.view]
        drawn = faded(canvas, neighbours.reshape(grid), area)
        pen = ImageDraw.Draw(drawn)
        for index in (*nearest, patch.index):
            left, top, right, bottom = _cell_of(divmod(index, grid[1]), grid, area)
            color = _CLICKED if index == patch.index else _NEAR
            pen.rectangle((left, top, right - 1, bottom - 1), outline=color, width=3 if index == patch.index else 2)
        return Drawing(drawn, "In colour its neighbours; red: the patch, orange: the nearest")

    def patch(self, view: int, index: int) -> Patch:
        """The patch of a view with this index."""
        row, column = divmod(index, self.grids[view][1])
        return Patch(view, row, column, index)

    def locate(self, x: float, y: float) -> Patch | None:
        """The patch at a pixel of the laid-out picture, None beside all of them."""
        for view, (left, top) in self._places.items():
            area, (rows, columns) = self.canvases[view][1], self.grids[view]
            across = (int(x) + 0.5 - left - area[0]) / (area[2] - area[0])
            down = (int(y) + 0.5 - top - area[1]) / (area[3] - area[1])
            if 0 <= across < 1 and 0 <= down < 1:
                return self.patch(view, int(down * rows) * columns + int(across * columns))
        return None

    @property
    def _title(self) -> str:
        """Which views these are, row by row."""
        first, *others = self.grids
        return f"{len(self.grids)} views, row by row" if others else self.name(first)

    def _laid_out(self, drawn: dict[int, Image.Image]) -> Image.Image:
        sheet = Image.new("RGB", self._size, _BETWEEN)
        for i, place in self._places.items():
            sheet.paste(drawn[i], place)
        return sheet


def sheets(picture: Image.Image, report: ImageReport, box: Box | None, tiles: Sequence[Image.Image]) -> list[Sheet]:
    """A sheet for each view if there are one or two of them, else one for all; see `Sheet`."""
    shown = [i for i, view in enumerate(report.views) if len(view)]
    groups = [[i] for i in shown] if len(shown) <= MAX_SHEETS else [shown]
    return [Sheet(picture, report, box, tiles, group) for group in groups]


def _cell_of(
    place: tuple[int, int], grid: tuple[int, int], area: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of the patch at (row, column)."""
    left, top, right, bottom = area
    xs, ys = (
        [start + round((i + end) * (stop - start) / cells) for end in (0, 1)]
        for i, cells, start, stop in ((place[1], grid[1], left, right), (place[0], grid[0], top, bottom))
    )
    return xs[0], ys[0], xs[1], ys[1]
