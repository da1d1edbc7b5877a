"""MiniCPM-V and relatives: the whole image, then slices of it; the tower merges patches on its way and after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from .base import Layout, Media, Size, Text
from .mrope import HYBRID
from .parts import BEGIN, BREAK, END, IMAGE, IMAGE_AND_VIDEO, LINE, TAG, text
from .tiled import Tiled

PATCH = 4


class MiniCPM(Tiled):
    """Tags stand around the whole image and around every slice, a line break between the rows of slices."""

    merged: ClassVar[int] = 4
    """Patches along each side of a token."""

    def grids(self, size: Size) -> list[Size]:
        """(rows, columns) of the tokens of the whole image, then of every slice."""
        height, width = (max(1, min(4, round(pixels / 10))) for pixels in size)
        slices = math.prod(self.tiles(size)) if self.number(size) > 1 else 0
        return [(height, width), *[(2, 3)] * slices]

    def image_layout(self, size: Size) -> Layout:
        count, views = 0, []
        for rows, columns in self.grids(size):
            views.append((list(range(count, count + rows * columns)), (rows, columns)))
            count += rows * columns
        return count, list(views)

    def image_ids(self, size: Size, text: Text) -> list[int]:
        (_, columns), (whole, *slices) = self.tiles(size), map(math.prod, self.grids(size))
        ids = [BEGIN, *[IMAGE] * whole, END]
        for number, count in enumerate(slices):
            line = [LINE] if number and number % columns == 0 else []
            ids += [*line, TAG, *[IMAGE] * count, BREAK]
        return ids

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        sizes = self.merged * torch.tensor(self.grids(size))
        patches = torch.randn(int(sizes.prod(1).sum()), 3, PATCH, PATCH, generator=generator)
        return {"pixel_values": patches, "target_sizes": sizes.int()}

    def collate(self, pixels: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        arguments = super().collate(pixels)
        return {**arguments, "pixel_values": _in_a_row(arguments["pixel_values"])}

    def cut(self, inputs: dict[str, Tensor], row: int, images: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        patches = inputs["pixel_values"][0].unflatten(-1, (-1, PATCH)).permute(2, 0, 1, 3)
        own = super().cut({**inputs, "pixel_values": patches}, row, images)
        return {**own, "pixel_values": _in_a_row(own["pixel_values"])}


class MiniCPMOcr(MiniCPM):
    """Its tower merges no patches on its way."""

    merged = 2


class MiniCPMV47(MiniCPM):
    """The tokens of an image and of its slices are numbered on one canvas."""

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (ids == IMAGE).long()}

    def positions(self, model: Any, prompt: dict[str, Tensor]) -> Tensor:
        order = super().positions(model, prompt)
        told = {name: prompt.get(name) for name in ("mm_token_type_ids", "target_sizes")}
        return torch.cat([order[None], model.base_model.get_rope_index(prompt["input_ids"], **told)[0]])


def _in_a_row(patches: Tensor) -> Tensor:
    """Patches [n, 3, side, side] side by side: [1, 3, side, n * side]."""
    return patches.permute(1, 2, 0, 3).flatten(2)[None]


SETTINGS: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": PATCH,
    },
    "text_config": text("qwen3_5_text", **HYBRID),
    "insert_layer_id": 0,
    "downsample_mode": "16x",
    **IMAGE_AND_VIDEO,
}
MARKERS = {
    "image_start_id": BEGIN,
    "image_end_id": END,
    "slice_start_id": TAG,
    "slice_end_id": BREAK,
    "newline_id": LINE,
}

MINICPM: tuple[MiniCPM, ...] = (
    MiniCPM("minicpmv4_6", SETTINGS, spread=0.12),
    MiniCPMOcr("minicpm_ocr", SETTINGS | {"downsample_mode": "4x"}, spread=0.12),
    MiniCPMV47("minicpmv4_7", SETTINGS | MARKERS, spread=0.12),
)
