"""Families that cut an image into square tiles and add the whole image as one more; every tile is a view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Generator, Tensor

from .base import Family, Layout, Media, Size, Text
from .parts import BEGIN, END, GLOBAL, IMAGE, LINE, TAG, siglip, text

PIXELS, SIDE = 12, 3
TOKENS = [IMAGE] * SIDE**2


@dataclass(frozen=True, eq=False)
class Tiled(Family):
    """The tiles row by row, then the whole image; an image that fits in one tile is that tile alone."""

    def tiles(self, size: Size) -> Size:
        """(rows, columns) of the tiles without the whole image: one for every 32 pixels, at most three."""
        rows, columns = (min(3, math.ceil(pixels / 32)) for pixels in size)
        return rows, columns

    def number(self, size: Size) -> int:
        """Number of tiles with the whole image."""
        tiles = math.prod(self.tiles(size))
        return tiles + 1 if tiles > 1 else 1

    def image_layout(self, size: Size) -> Layout:
        area, number = SIDE**2, self.number(size)
        return number * area, [(list(range(i * area, (i + 1) * area)), (SIDE, SIDE)) for i in range(number)]

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(self.number(size), 3, PIXELS, PIXELS, generator=generator)}


class AyaVision(Tiled):
    """Every tile has a tag before it, the whole image another."""

    def image_ids(self, size: Size, text: Text) -> list[int]:
        tiles = [TAG, *TOKENS] * (self.number(size) - 1)
        return [*self.before, *tiles, GLOBAL, *TOKENS, *self.after]


class Cohere2Vision(Tiled):
    """Every tile has a line break after it."""

    def image_ids(self, size: Size, text: Text) -> list[int]:
        return [*self.before, *[*TOKENS, LINE] * self.number(size), *self.after]


class Idefics3(Tiled):
    """Every tile has a tag with its row and column before it, every row of tiles a line break after it.

    A batch is padded to the most tiles of its prompts with tiles of zeros.
    """

    def image_ids(self, size: Size, text: Text) -> list[int]:
        ids: list[int] = []
        rows, columns = self.tiles(size)
        for row in range(rows if self.number(size) > 1 else 0):
            for column in range(columns):
                ids += [BEGIN, 10 + 6 * row + column, *TOKENS]
            ids += [LINE] * (2 if row == rows - 1 else 1)
        return [*ids, BEGIN, GLOBAL, *TOKENS, BEGIN]

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        pixels = super().image_pixels(size, generator)["pixel_values"]
        return {"pixel_values": pixels, "pixel_attention_mask": torch.ones_like(pixels[:, 0]).long()}

    def collate(self, pixels: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        blank = {name: torch.zeros_like(tiles[:1]) for name, tiles in next(chain(*pixels)).items()}
        prompts = [Family.collate(self, [prompt or [blank]]) for prompt in pixels]
        return super().collate([[{name: tiles[None] for name, tiles in prompt.items()}] for prompt in prompts])

    def cut(self, inputs: dict[str, Tensor], row: int, images: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        tiles = self._rows(images[row : row + 1])
        return {name: inputs[name][row : row + 1, : tiles[name]] for name in tiles}


SQUARES = siglip(image=PIXELS, patch=PIXELS // SIDE // 2)

IDEFICS3: dict[str, Any] = {
    "vision_config": {name: value for name, value in SQUARES.items() if name != "model_type"},
    "text_config": text(),
    "image_token_id": IMAGE,
    "scale_factor": 2,
}
COHERE2: dict[str, Any] = {
    "vision_config": SQUARES,
    "text_config": text("cohere2", layer_types=["sliding_attention", "full_attention"], sliding_window=512),
    "image_token_id": IMAGE,
    "downsample_factor": 2,
}

TILED: tuple[Family, ...] = (
    Idefics3("idefics3", IDEFICS3),
    Idefics3("smolvlm", IDEFICS3),
    Tiled(
        "internvl",
        {
            "vision_config": {**SQUARES, "model_type": "internvl_vision"},
            "text_config": text("qwen2"),
            "image_token_id": IMAGE,
            "image_seq_length": SIDE**2,
        },
        before=(BEGIN,),
        after=(END,),
    ),
    AyaVision(
        "aya_vision",
        {**COHERE2, "vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        before=(BEGIN,),
        after=(END,),
    ),
    Cohere2Vision(
        "cohere2_vision",
        {**COHERE2, "alignment_intermediate_size": 32},
        before=(BEGIN,),
        after=(END,),
    ),
)
