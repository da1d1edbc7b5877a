"""LLaVA-NeXT and relatives: a base view, then high-resolution lines that each end in a newline row."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
import transformers
from packaging.version import Version
from torch import Generator, Tensor
from transformers.image_processing_utils import select_best_resolution

from gprune.tokens import VisualTokens

from .base import Family, Layout, Media, Size, Video, is_video
from .parts import IMAGE_AND_VIDEO, siglip, text
from .square import CLIP_LLAMA

TILE, SIDE = 16, 4
MOST_TILES = 2


class LlavaNext(Family):
    """The high-resolution grid is what the image covers of its best resolution."""

    pinpoints: ClassVar[list[list[int]]] = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]

    def image_layout(self, size: Size) -> Layout:
        views: list[tuple[list[int], Size | None]] = [(list(range(SIDE**2)), (SIDE, SIDE))]
        lines, columns = self.lines(size)
        starts = [SIDE**2 + line * (columns + 1) for line in range(lines)]
        if lines * columns:
            views.append(([start + column for start in starts for column in range(columns)], (lines, columns)))
        return SIDE**2 + lines * (columns + 1), views

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        height, width = select_best_resolution(size, self.pinpoints)
        tiles = 1 + (height // TILE) * (width // TILE)
        return {
            "pixel_values": torch.randn(1, tiles, 3, TILE, TILE, generator=generator),
            "image_sizes": torch.tensor([size]),
        }

    def lines(self, size: Size) -> Size:
        """(lines, columns) of the high-resolution grid: what the image covers, without the padding."""
        height, width = size
        rows, columns = (pixels * SIDE // TILE for pixels in select_best_resolution(size, self.pinpoints))
        if width / height > columns / rows:
            covered = int(round(height * columns / width, 7))
            return rows - 2 * ((rows - covered) // 2), columns
        covered = int(round(width * rows / height, 7))
        return rows, columns - 2 * ((columns - covered) // 2)

    def tokens(self, features: Tensor, media: Media) -> VisualTokens:
        """With the tiles of the grid: lines of the best resolution by the tile that they are in, padding left out."""
        tokens = super().tokens(features, media)
        if is_video(media) or len(tokens.views) < 2:
            return tokens
        base, grid = tokens.views
        full = [pixels * SIDE // TILE for pixels in select_best_resolution(media, self.pinpoints)]
        heights, widths = (
            _tile_lines(*each) for each in zip(full, LlavaNext.lines(self, media), self.lines(media), strict=True)
        )
        return replace(tokens, views=(base, replace(grid, tiles=(heights, widths))))


def _tile_lines(full: int, filled: int, lines: int) -> tuple[int, ...]:
    """Each of the lines, as long as what is filled in the middle of all, goes to the tile of which it shows most."""
    owners = []
    for line in range(lines):
        start, end = ((full - filled) / 2 + place * filled / lines for place in (line, line + 1))
        shown = [min(end, tile + SIDE) - max(start, tile) for tile in range(0, full, SIDE)]
        owners.append(shown.index(max(shown)))
    return tuple(owners.count(tile) for tile in sorted(set(owners)))


class WithVideo(LlavaNext):
    """Frames are pooled to a quarter of the tokens; LLaVA-NeXT-Video's can be pruned from transformers 5.20.2 on."""

    takes_videos = Version(transformers.__version__) >= Version("5.20.2")

    def video_layout(self, video: Video) -> Layout:
        side = SIDE // 2
        frames = [list(range(frame * side**2, (frame + 1) * side**2)) for frame in range(video[0])]
        return video[0] * side**2, [(rows, (side, side)) for rows in frames]

    def video_pixels(self, video: Video, generator: Generator) -> dict[str, Tensor]:
        return {"pixel_values_videos": torch.randn(1, video[0], 3, TILE, TILE, generator=generator)}


class OneVision(WithVideo):
    """Large grids are scaled down; a newline row ends a video."""

    takes_videos = True
    pinpoints: ClassVar[list[list[int]]] = [*LlavaNext.pinpoints, [48, 48]]

    def lines(self, size: Size) -> Size:
        rows, columns = super().lines(size)
        ratio = math.sqrt(rows * columns / (MOST_TILES * SIDE**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)

    def video_layout(self, video: Video) -> Layout:
        count, views = super().video_layout(video)
        return count + 1, views


NEWLINE: tuple[Family, ...] = (
    LlavaNext("llava_next", {**CLIP_LLAMA, "image_grid_pinpoints": LlavaNext.pinpoints}),
    WithVideo("llava_next_video", {**CLIP_LLAMA, **IMAGE_AND_VIDEO, "image_grid_pinpoints": WithVideo.pinpoints}),
    OneVision(
        "llava_onevision",
        {
            "vision_config": siglip(),
            "text_config": text("qwen2"),
            **IMAGE_AND_VIDEO,
            "image_grid_pinpoints": OneVision.pinpoints,
            "vision_aspect_ratio": f"anyres_max_{MOST_TILES}",
        },
    ),
)
