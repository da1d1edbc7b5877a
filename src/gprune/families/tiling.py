"""How a model tiles an image into visual tokens: a closed form of the image's size, no pixels needed.

A model without tiling sees an image as one view. An any-resolution model (LLaVA-NeXT, LLaVA-OneVision) sees a
base view of the whole and a high-resolution grid, cut down to what the picture fills, with a newline token at
the end of every row.
"""

from __future__ import annotations

import math
from collections import Counter
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
    side, (tile_rows, tile_columns) = _tiles(config, size)
    rows, columns = _unpad(size, tile_rows * side, tile_columns * side)
    if config.model_type == "llava_onevision":
        most_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        rows, columns = _shrink(rows, columns, most_tiles * side**2)
    return Tiling(1 + tile_rows * tile_columns, (side, side), (rows, columns))


def tile_lines(config: Any, size: tuple[int, int], grid: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many rows and columns of an image's high-resolution grid are in each row and column of tiles.

    A line that was scaled down with the grid belongs to the tile of which it shows most; tiles of padding alone are
    left out.

    Args:
        config: of an any-resolution model type.
        size: (height, width) of the image in pixels.
        grid: (rows, columns) that the model makes of it, without padding, scaled down or not.
    """
    side, tiles = _tiles(config, size)
    filled = _unpad(size, *(side * count for count in tiles))
    heights, widths = (_lines(side, *each) for each in zip(tiles, filled, grid, strict=True))
    return heights, widths


def _lines(side: int, tiles: int, filled: int, lines: int) -> tuple[int, ...]:
    """Lines in each of the tiles that a picture fills, scaled to `lines` in all; each tile is `side` long."""
    margin = (side * tiles - filled) // 2
    middles = (2 * lines * margin + (2 * line + 1) * filled for line in range(lines))
    return tuple(Counter(middle // (2 * lines * side) for middle in middles).values())


def _tiles(config: Any, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Side of a tile in tokens, and the rows and columns of tiles that an image is cut into."""
    tile = config.vision_config.image_size
    height, width = best_resolution(size, config.image_grid_pinpoints)
    return tile // config.vision_config.patch_size, (height // tile, width // tile)


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
