"""How a model tiles an image into visual tokens: a closed form of the image's size, no pixels needed.

A model without tiling sees an image as one view. An any-resolution model (LLaVA-NeXT, LLaVA-OneVision) sees a
base view of the whole and a high-resolution grid, cut down to what the picture fills, with a newline token at
the end of every row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..host import best_resolution


@dataclass(frozen=True)
class Tiling:
    """One image in an any-resolution model.

    Args:
        tiles: pictures that go through the vision tower, the downscaled whole included.
        base: (rows, columns) of the base view.
        grid: (rows, columns) of the high-resolution grid without padding; 0 at extreme aspect ratios.
    """

    tiles: int
    base: tuple[int, int]
    grid: tuple[int, int]

    @property
    def views(self) -> tuple[int, ...]:
        """Tokens of each view that is ranked, newline tokens excluded."""
        return tuple(n for n in (math.prod(self.base), math.prod(self.grid)) if n)

    @property
    def newlines(self) -> int:
        """Newline tokens: one at the end of every row of the grid."""
        return self.grid[0]


def tiling(config: Any, size: tuple[int, int]) -> Tiling:
    """Lay out an image of `size` (height, width) in pixels for a config of an any-resolution model type."""
    tile = config.vision_config.image_size
    side = tile // config.vision_config.patch_size
    tile_rows, tile_columns = (n // tile for n in best_resolution(size, config.image_grid_pinpoints))
    rows, columns = _unpad(size, tile_rows * side, tile_columns * side)
    if config.model_type == "llava_onevision":
        most_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        rows, columns = _shrink(rows, columns, most_tiles * side**2)
    return Tiling(1 + tile_rows * tile_columns, (side, side), (rows, columns))


def _unpad(size: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    """Take off the padding: equal margins on the two sides that the picture does not fill."""
    height, width = size
    if width / height > columns / rows:
        filled = int(round(height * (columns / width), 7))
        return rows - 2 * ((rows - filled) // 2), columns
    filled = int(round(width * (rows / height), 7))
    return rows, columns - 2 * ((columns - filled) // 2)


def _shrink(rows: int, columns: int, most: int) -> tuple[int, int]:
    """LLaVA-OneVision interpolates a grid of clearly more than `most` tokens down to about that many."""
    ratio = math.sqrt(rows * columns / most)
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)
