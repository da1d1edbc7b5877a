"""How the tokens of one item of an encoder's output lie in the picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..tokens import View
from .tiling import tile_lines

_SIZES = ("image_grid_thw", "video_grid_thw", "video_grids", "image_sizes", "spatial_shapes", "target_sizes")
"""Arguments of encoders that end in an item's height and width."""


SIEVE = "video_compression_mask"
"""The argument of forward that says which rows of a video encoder's output stand in the prompt."""


@dataclass(frozen=True, eq=False)
class Item:
    """One item of an encoder's output: an image, a tile of one, or a video.

    Args:
        model: whose encoder it was.
        features: floating [n, d].
        arguments: what the encoder was told of this item, by the name of its argument: sizes, grids, frames;
            empty when the features were made elsewhere. Integers are on the CPU.
        key: the same for the copies of an item that are made for beams.
        signals: what else is known of its tokens, by name: [n, ...].
        marked: its rows that equal `Family.mark`, ascending.
    """

    model: PreTrainedModel
    features: Tensor
    arguments: dict[str, Tensor]
    key: tuple[int, int]
    signals: dict[str, Tensor] = field(default_factory=dict)
    marked: Sequence[int] = ()

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def frames(self) -> int:
        """Pictures that follow one another in time: 1 for an image."""
        for name in ("image_grid_thw", "video_grid_thw", "video_grids", "num_frames_per_video"):
            if name in self.arguments:
                return int(self.arguments[name].flatten()[0])
        frames = self.arguments.get("pixel_values_videos")
        return 1 if frames is None or frames.ndim != 4 else len(frames)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a frame in any unit; (1, 1) when nothing was said, as by square encoders."""
        for name in _SIZES:
            if name in self.arguments:
                height, width = self.arguments[name][-2:].tolist()
                return height, width
        if "image_position_ids" in self.arguments:
            width, height = (self.arguments["image_position_ids"].amax(0) + 1).tolist()
            return height, width
        return 1, 1


TILES = "num_local_patches"
"""The argument with the number of tiles of each image, the whole not counted."""

Views = Callable[[Item], tuple[View, ...]]
"""An item of an encoder's output -> its views, rows counted within the item; rows in no view are fixed."""


def frames(item: Item) -> tuple[View, ...]:
    """One view per frame, all of one shape, in row-major order; rows that are left over are fixed."""
    count = item.frames
    each = len(item) // count
    grid = scaled(item.size, each)
    rows = torch.arange(count * each, device=item.features.device)
    return tuple(View(frame, grid) for frame in rows.view(count, each))


def frames_and_newline(item: Item) -> tuple[View, ...]:
    """One view per frame, with one newline row after the last frame."""
    return frames(Item(item.model, item.features[:-1], item.arguments, item.key))


def merged_frames(item: Item) -> tuple[View, ...]:
    """One view for as many frames of a video as a token shows together."""
    grid = item.arguments.get("video_grid_thw")
    if grid is None:
        return unordered(item)
    together = item.model.config.vision_config.temporal_merge_size
    frames_of = {"video_grid_thw": torch.cat([grid[:1] // together, grid[1:]])}
    return frames(Item(item.model, item.features, frames_of, item.key))


def frames_in_lines(item: Item) -> tuple[View, ...]:
    """One view per frame, in lines that each end in a learned row; these are fixed.

    Raises:
        ValueError: the features were made elsewhere, so that nothing tells how long the lines are.
    """
    if item.size == (1, 1):
        raise ValueError(
            f"the grid of an image of {len(item)} visual tokens is not known: its features were encoded while no "
            f"pruner was attached; {item.model.config.model_type} puts learned rows between them, of which none may "
            f"be dropped; pass the pixels, or encode while the pruner is attached"
        )
    merge = item.model.config.vision_config.spatial_merge_size
    height, width = (length // merge for length in item.size)
    rows = torch.arange(len(item), device=item.features.device).view(item.frames, height, width + 1)
    return tuple(View(frame.flatten(), (height, width)) for frame in rows[..., :-1])


def averaged(item: Item) -> tuple[View, ...]:
    """One view, whose tokens are means over all frames."""
    return (View(torch.arange(len(item), device=item.features.device), scaled(item.size, len(item))),)


def sifted_frames(item: Item) -> tuple[View, ...]:
    """One view per frame of which the processor left tokens, as VideoLLaMA 3 tells them in `video_compression_mask`."""
    if SIEVE not in item.arguments:
        return frames(item)
    left = item.arguments[SIEVE].view(item.frames, -1)
    rows = torch.arange(len(item), device=item.features.device).split(left.sum(dim=1).tolist())
    grid = scaled(item.size, left.shape[1])
    return tuple(View(own, grid if len(own) == left.shape[1] else None) for own in rows if len(own))


def placed_frames(item: Item) -> tuple[View, ...]:
    """One view per frame, of the size that the places of its patches tell in `video_position_ids`."""
    if "video_position_ids" not in item.arguments:
        return frames(item)
    places = item.arguments["video_position_ids"]
    patches = (places >= 0).all(dim=-1).sum(dim=1)
    counts = (patches * len(item) // patches.sum()).tolist()
    sizes = (places.amax(dim=1) + 1).flip(-1).tolist()
    rows = torch.arange(len(item), device=item.features.device).split(counts)
    return tuple(View(own, scaled((height, width), len(own))) for own, (height, width) in zip(rows, sizes, strict=True))


def unordered(item: Item) -> tuple[View, ...]:
    """One view of tokens that have no place in the picture, such as those of a resampler."""
    return (View(torch.arange(len(item), device=item.features.device)),)


def newline(model: PreTrainedModel) -> Tensor:
    """The learned row that ends every line: floating [d]."""
    return cast(Tensor, model.base_model.image_newline)


def base_and_lines(item: Item) -> tuple[View, ...]:
    """Read the views of one image back from its packed features.

    The size of the image is not known where features were encoded elsewhere, but the model puts the same
    learned newline row at the end of every line, unchanged: where it stands tells the shape. Newline rows are
    fixed. Where the size is known, so are the tiles of the grid. An image without high-resolution lines (extreme aspect
    ratio, one of several OneVision images) is a base view alone.

    Args:
        item: one image of a model with a square vision tower; the newline rows are marked.

    Returns:
        The base view and, where there are lines, the view of the high-resolution grid.

    Raises:
        ValueError: the features are not laid out this way.
    """
    model, newlines = item.model, item.marked
    config = model.config.vision_config
    side = config.image_size // config.patch_size
    base, count = side * side, len(item)
    width = newlines[0] - base + 1 if newlines else 0
    lines = (count - base) // width if width > 0 else 0
    if newlines != [base + (line + 1) * width - 1 for line in range(lines)] or count != base + lines * width:
        raise _not_lines(item, f"{base} base tokens, then lines of equal length that each end in the newline row")
    rows = torch.arange(count, device=item.features.device)
    views = (View(rows[:base], (side, side)),)
    if width < 2:
        return views
    grid = rows[base:].view(lines, width)[:, :-1]
    tiles = tile_lines(model.config, item.size, (lines, width - 1)) if "image_sizes" in item.arguments else None
    return (*views, View(grid.reshape(-1), (lines, width - 1), tiles=tiles))


def tiles_then_whole(item: Item) -> tuple[View, ...]:
    """The tiles of an image, then the whole of it, as Step 3.7 joins them; one view where nothing was told."""
    if TILES not in item.arguments:
        return unordered(item)
    grid = _cells(item, item.model.config.vision_config.patch_size)
    *tiles, whole = _tiles_then_rest(item, math.prod(grid))
    return (*(View(tile, scaled((1, 1), len(tile))) for tile in tiles), View(whole, grid))


def queries_of_tiles(item: Item) -> tuple[View, ...]:
    """Learned queries for each tile, then for the whole image, then a fixed separator, as of DeepSeek-OCR 2.

    Queries have no place in the picture. The tower has a set of them for pictures of up to 144 patches and one for
    larger ones; where nothing was told of the image, all are one view.
    """
    if TILES not in item.arguments:
        return (View(torch.arange(len(item) - 1, device=item.features.device)),)
    tower = cast(Any, item.model.base_model.vision_tower)
    settings = item.model.config.vision_config.sam_config
    small = math.prod(_cells(item, settings.patch_size)) <= 144
    queries = tower.query_768_resolution if small else tower.query_1024_resolution
    *tiles, rest = _tiles_then_rest(item, queries.num_embeddings + 1)
    return tuple(View(part) for part in (*tiles, rest[:-1]))


def _cells(item: Item, patch: int) -> tuple[int, int]:
    """(rows, columns) of a whole image whose tower halves a grid of patches of so many pixels twice."""
    height, width = item.arguments["pixel_values"].shape[-2:]
    return math.ceil(height / patch / 4), math.ceil(width / patch / 4)


def _tiles_then_rest(item: Item, rest: int) -> list[Tensor]:
    """The rows of each tile, of which all have as many, then the last `rest` rows."""
    tiles, last = torch.arange(len(item), device=item.features.device).split([len(item) - rest, rest])
    return [*tiles.unflatten(0, (int(item.arguments[TILES]), -1)), last] if len(tiles) else [last]


def lines_then_base(item: Item) -> tuple[View, ...]:
    """Read the views of one image back from its features, as Unlimited-OCR packs them.

    The lines of the high-resolution grid, if there is one, then those of the square base view, each with the same
    learned newline row at its end; then a separator. Newline rows and the separator are fixed.

    Raises:
        ValueError: the features are not laid out this way.
    """
    count, ends = len(item) - 1, [-1, *item.marked]
    side = ends[-1] - ends[-2] - 1 if item.marked else 0
    base = count - side * (side + 1)
    lines = len(item.marked) - side
    width = base // lines if lines > 0 else 0
    expected = [(line + 1) * width - 1 for line in range(lines)]
    expected += [base + (line + 1) * (side + 1) - 1 for line in range(side)]
    if not side or list(item.marked) != expected or base != lines * width:
        raise _not_lines(item, "lines of equal length, then a square, each line with the newline row, and a last row")
    rows = torch.arange(count, device=item.features.device)
    parts = ((rows[:base], (lines, width - 1)), (rows[base:], (side, side)))
    return tuple(View(part.view(grid[0], -1)[:, :-1].reshape(-1), grid) for part, grid in parts if len(part))


def _not_lines(item: Item, expected: str) -> ValueError:
    return ValueError(
        f"an image has {len(item)} visual tokens with newline rows at {list(item.marked)}; "
        f"{item.model.config.model_type} makes {expected}; call generate() without prefill_chunk_size, and pass the "
        f"features of the encoder unchanged"
    )


def two_resolutions(item: Item) -> tuple[View, ...]:
    """A downscaled view, then a view in full resolution, as Molmo tells them in `image_grids`."""
    if "image_grids" not in item.arguments:
        return unordered(item)
    low_rows, low_columns, rows, columns = item.arguments["image_grids"].tolist()
    both = torch.arange(len(item), device=item.features.device).split([low_rows * low_columns, rows * columns])
    grids = (low_rows, low_columns), (rows, columns)
    return tuple(View(rows, grid) for rows, grid in zip(both, grids, strict=True) if len(rows))


PARTIAL = (unordered, tiles_then_whole, queries_of_tiles)
"""The views that do not tell where in the picture a token lies."""


def scaled(size: tuple[int, int], count: int) -> tuple[int, int] | None:
    """(rows, columns) with rows * columns == count in the proportions of size, or None if there is none."""
    scale = math.sqrt(size[0] * size[1] / max(count, 1))
    rows, columns = (round(length / scale) for length in size)
    return (rows, columns) if rows * columns == count else None
