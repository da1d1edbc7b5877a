"""Molmo2: an image in low resolution, then in high resolution stitched from overlapping crops; two views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from .base import Family, Layout, Media, Size, Text, is_visual
from .parts import BEGIN, BREAK, END, IMAGE, TAG, text

PATCH, SIDE, MARGIN, POOL = 4, 6, 1, 2
"""Pixels of a patch, patches of a crop, patches that its neighbours show too, patches that a token pools."""


class Molmo2(Family):
    """Features are added to the embeddings of the placeholders; all tokens of images see each other both ways."""

    def crops(self, size: Size) -> Size:
        """(rows, columns) of the crops: one for every 32 pixels, at most three."""
        rows, columns = (min(3, math.ceil(pixels / 32)) for pixels in size)
        return rows, columns

    def grids(self, size: Size) -> tuple[Size, Size]:
        """(rows, columns) of the view in low and of the view in high resolution."""
        window = SIDE - 2 * MARGIN
        rows, columns = ((crops * window + 2 * MARGIN) // POOL for crops in self.crops(size))
        return (SIDE // POOL, SIDE // POOL), (rows, columns)

    def image_layout(self, size: Size) -> Layout:
        low, high = self.grids(size)
        first, count = math.prod(low), math.prod(low) + math.prod(high)
        return count, [(list(range(first)), low), (list(range(first, count)), high)]

    def image_ids(self, size: Size, text: Text) -> list[int]:
        low, high = ([*[IMAGE] * columns, BREAK] * rows for rows, columns in self.grids(size))
        return [TAG, *low, END, BEGIN, *high, END]

    def prompt_ids(self, media: Sequence[Media], first: int, text: Text) -> list[int]:
        return [1, *super().prompt_ids(media, first, text)]

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        rows, columns = self.crops(size)
        low = torch.arange(SIDE**2).view(SIDE, SIDE)
        pooling = torch.cat([_pooled(low), _pooled(_stitched(rows, columns) + SIDE**2)])
        crops = 1 + rows * columns
        return {
            "pixel_values": torch.randn(crops, SIDE**2, 3 * PATCH**2, generator=generator),
            "image_token_pooling": pooling,
            "image_grids": torch.tensor([[side for grid in self.grids(size) for side in grid]]),
            "image_num_crops": torch.tensor([crops]),
        }

    def collate(self, pixels: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        first, numbered = 0, []
        for one in (one for prompt in pixels for one in prompt):
            numbered.append({**one, "image_token_pooling": one["image_token_pooling"] + first})
            first += one["pixel_values"].shape[:2].numel()
        return super().collate([numbered])

    def cut(self, inputs: dict[str, Tensor], row: int, images: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        own = super().cut(inputs, row, images)
        return {**own, "image_token_pooling": own["image_token_pooling"] - own["image_token_pooling"].min()}

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": torch.isin(ids, torch.tensor([IMAGE, BREAK, TAG, BEGIN, END])).long()}

    def blocks(self, ids: Tensor) -> Tensor:
        return self.token_types(ids)["mm_token_type_ids"] - 1

    def embeddings(self, model: Any, ids: Tensor, features: list[Tensor]) -> Tensor:
        embeddings = super().embeddings(model, ids, [])
        added = torch.zeros_like(embeddings)
        return embeddings + (added.masked_scatter(is_visual(ids)[:, None], torch.cat(features)) if features else added)


def _stitched(rows: int, columns: int) -> Tensor:
    """Index of the patch at each place of the whole image: the margins of a crop are left to its neighbours."""
    patches = torch.arange(rows * columns * SIDE**2).view(rows, columns, SIDE, SIDE).transpose(1, 2)
    lines = patches.reshape(rows * SIDE, columns * SIDE)
    return lines[_own(rows)][:, _own(columns)]


def _own(crops: int) -> Tensor:
    places = torch.arange(crops * SIDE)
    inner = (places % SIDE >= MARGIN) & (places % SIDE < SIDE - MARGIN)
    return inner | (places < MARGIN) | (places >= crops * SIDE - MARGIN)


def _pooled(patches: Tensor) -> Tensor:
    """int64 [tokens, POOL²]: the patches of every token."""
    return patches.unfold(0, POOL, POOL).unfold(1, POOL, POOL).reshape(-1, POOL**2)


MOLMO: tuple[Family, ...] = (
    Molmo2(
        "molmo2",
        {
            "text_config": text("molmo2_text", additional_vocab_size=0),
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "image_size": [SIDE * PATCH] * 2,
                "patch_size": PATCH,
            },
            "adapter_config": {
                "vision_feature_layer": [1, 0],
                "hidden_size": 16,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "intermediate_size": 24,
                "text_hidden_size": 32,
            },
            "image_patch_id": IMAGE,
            "image_start_token_id": BEGIN,
            "image_end_token_id": END,
            "low_res_image_start_token_id": TAG,
            "frame_start_token_id": 86,
            "frame_end_token_id": 87,
        },
    ),
)
