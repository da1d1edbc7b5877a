"""Families that keep the shape of an image: one view whose grid follows from its size."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from .base import Family, Layout, Size, Text, is_visual
from .parts import BEGIN, BREAK, END, IMAGE, IMAGE_AND_VIDEO, LINE, TAG, VOCABULARY, text, vision

PATCH, MERGE = 4, 2
CELL = PATCH * MERGE
"""Side in pixels of what one token shows."""


class Grid(Family):
    """An image is resized to whole cells."""

    most: ClassVar[int] = 32

    def grid(self, size: Size) -> Size:
        """(rows, columns) of an image or a frame."""
        rows, columns = (min(self.most, max(1, round(pixels / CELL))) for pixels in size)
        return rows, columns

    def image_layout(self, size: Size) -> Layout:
        return self.frames_layout(1, size)

    def frames_layout(self, frames: int, size: Size) -> Layout:
        """The layout of that many frames, one after the other."""
        rows, columns = self.grid(size)
        area = rows * columns
        return frames * area, [(list(range(i * area, (i + 1) * area)), (rows, columns)) for i in range(frames)]

    def patch_grid(self, frames: int, size: Size) -> Tensor:
        """int64 [1, 3]: frames, rows and columns of patches."""
        rows, columns = self.grid(size)
        return torch.tensor([[frames, rows * MERGE, columns * MERGE]])


class Mistral3(Grid):
    """Text tokens break the lines of an image; images of a batch are padded to the largest."""

    def image_ids(self, size: Size, text: Text) -> list[int]:
        rows, columns = self.grid(size)
        return [*([*[IMAGE] * columns, BREAK] * rows)[:-1], END]

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        height, width = (cells * CELL for cells in self.grid(size))
        return {
            "pixel_values": torch.randn(1, 3, height, width, generator=generator),
            "image_sizes": torch.tensor([[height, width]]),
        }


class KimiK25(Grid):
    """Pixels come as patches, row by row."""

    reads_placeholders = False

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        grid = self.patch_grid(1, size)
        return {
            "pixel_values": torch.randn(int(grid.prod()), 3, PATCH, PATCH, generator=generator),
            "image_grid_thw": grid,
        }


class Gemma4(Grid):
    """Pixels come as patches with their places, padded to as many for every image.

    Every layer has inputs of its own that are looked up by token; the last takes the keys and values of one
    before it. Layers with a sliding window see the tokens of an image both ways, the others do not.
    """

    most = 8
    reads_placeholders = False

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        _, rows, columns = self.patch_grid(1, size)[0].tolist()
        pixels = torch.zeros(1, (self.most * MERGE) ** 2, 3 * PATCH**2)
        places = torch.full((1, pixels.shape[1], 2), -1)
        pixels[:, : rows * columns] = torch.rand(rows * columns, pixels.shape[2], generator=generator)
        places[:, : rows * columns] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)
        return {"pixel_values": pixels, "image_position_ids": places}

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (ids == IMAGE).long()}

    def blocks(self, ids: Tensor) -> Tensor:
        shown = ids == IMAGE
        starts = shown & ~shown.roll(1, -1)
        return torch.where(shown, starts.cumsum(-1), -1)

    def logits(self, model: Any, ids: Tensor, arguments: dict[str, Any]) -> Tensor:
        mask = arguments["attention_mask"]
        if mask.ndim == 4:
            causal = torch.full_like(mask, mask.min().item()).triu(1)
            mask = {"sliding_attention": mask, "full_attention": causal}
        per_layer = model.get_decoder().get_per_layer_inputs(ids[None].masked_fill(is_visual(ids), 0), None)
        return super().logits(model, ids, {**arguments, "attention_mask": mask, "per_layer_inputs": per_layer})


GRIDS: tuple[Family, ...] = (
    Mistral3(
        "mistral3",
        {
            "vision_config": vision("pixtral", image=Grid.most * CELL, patch=PATCH, head_dim=12),
            "text_config": text("mistral", sliding_window=None),
            "image_token_id": IMAGE,
            "spatial_merge_size": MERGE,
            "vision_feature_layer": -1,
        },
    ),
    KimiK25(
        "kimi_k25",
        {
            "vision_config": {
                "patch_size": PATCH,
                "pos_emb_height": 8,
                "pos_emb_width": 8,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            },
            "text_config": text(
                "deepseek_v3",
                num_key_value_heads=4,
                kv_lora_rank=16,
                q_lora_rank=16,
                qk_rope_head_dim=8,
                qk_nope_head_dim=8,
                v_head_dim=8,
                first_k_dense_replace=1,
                n_shared_experts=1,
                n_routed_experts=4,
                n_group=1,
                topk_group=1,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                num_mtp_layers=0,
            ),
            "projection_hidden_size": 16,
            **IMAGE_AND_VIDEO,
            "vision_start_token_id": BEGIN,
            "vision_end_token_id": END,
            "tie_word_embeddings": False,
        },
        before=(BEGIN, TAG, BREAK),
        after=(END, LINE),
    ),
    Gemma4(
        "gemma4",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "patch_size": PATCH,
                "pooling_kernel_size": MERGE,
                "position_embedding_size": 64,
                "standardize": False,
            },
            "text_config": text(
                "gemma4_text",
                num_hidden_layers=4,
                num_kv_shared_layers=1,
                layer_types=["sliding_attention", "full_attention"] * 2,
                sliding_window=512,
                global_head_dim=8,
                hidden_size_per_layer_input=16,
                vocab_size_per_layer_input=VOCABULARY,
                use_bidirectional_attention="vision",
            ),
            "audio_config": None,
            **IMAGE_AND_VIDEO,
            "audio_token_id": VOCABULARY,
            "boi_token_id": BEGIN,
            "eoi_token_id": END,
            "tie_word_embeddings": False,
        },
        before=(BEGIN,),
        after=(END,),
        spread=0.05,
    ),
)
