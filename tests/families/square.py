"""Families that bring every image to one size: one view, and always as many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as T
from torch import Generator, Tensor

from .base import Family, Layout, Media, Size, Text
from .parts import BEGIN, END, IMAGE, LINE, VIDEO, VIPLLAVA_LAYERS, siglip, text, vision


@dataclass(frozen=True, eq=False, kw_only=True)
class Square(Family):
    """Every image is a square.

    Args:
        pixels: its side in pixels.
        side: the side of its grid.
    """

    pixels: int = 16
    side: int = 4

    def image_layout(self, size: Size) -> Layout:
        count = self.side**2
        return count, [(list(range(count)), (self.side, self.side))]

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(1, 3, self.pixels, self.pixels, generator=generator)}


class Gemma3(Square):
    """The tokens of an image see each other both ways."""

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (ids == IMAGE).long()}

    def blocks(self, ids: Tensor) -> Tensor:
        shown = ids == IMAGE
        starts = shown & ~shown.roll(1, -1)
        return torch.where(shown, starts.cumsum(-1), -1)


class PaliGemma(Square):
    """Images come first, one right after the other; the whole prompt sees itself both ways."""

    def prompt_ids(self, media: Sequence[Media], first: int, text: Text) -> list[int]:
        return [IMAGE] * (len(media) * self.side**2) + [1, *text(first + 5), LINE]

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": torch.zeros_like(ids)}

    def blocks(self, ids: Tensor) -> Tensor:
        return torch.zeros_like(ids)

    def positions(self, model: object, prompt: dict[str, Tensor]) -> Tensor:
        return super().positions(model, prompt) + 1


class Aria(Square):
    """Learned queries stand for an image, so its tokens have no grid; a mask says where it is padded."""

    def image_layout(self, size: Size) -> Layout:
        return 12, [(list(range(12)), None)]

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        mask = torch.zeros(1, self.pixels, self.pixels, dtype=torch.bool)
        mask[:, : self.pixels * size[0] // max(size), : self.pixels * size[1] // max(size)] = True
        return super().image_pixels(size, generator) | {"pixel_mask": mask}


class DeepseekVLHybrid(Square):
    """A second tower sees the same picture in a higher resolution."""

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        sharp = torch.randn(1, 3, 4 * self.pixels, 4 * self.pixels, generator=generator)
        return super().image_pixels(size, generator) | {"high_res_pixel_values": sharp}


class FastVLM(Square):
    """The tower is made of convolutions."""

    tower_attends = False


CLIP_LLAMA = {"vision_config": vision("clip_vision_model"), "text_config": text(), "image_token_id": IMAGE}

SAM = {
    "hidden_size": 16,
    "output_channels": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 4,
    "mlp_dim": 16,
    "window_size": 2,
    "global_attn_indexes": [1],
}
CONVOLUTIONS: dict[str, Any] = {
    "model_type": "convnext",
    "hidden_size": 24,
    "num_stages": 1,
    "hidden_sizes": [24],
    "depths": [2],
}

SQUARE: tuple[Family, ...] = (
    Square("llava", {**CLIP_LLAMA, "image_seq_length": 16}),
    Square("vipllava", {**CLIP_LLAMA, VIPLLAVA_LAYERS: [-1, -2]}),
    Gemma3(
        "gemma3",
        {
            "vision_config": siglip(patch=2),
            "text_config": text(
                "gemma3_text",
                layer_types=["sliding_attention", "full_attention"],
                sliding_window=512,
                query_pre_attn_scalar=8,
            ),
            "mm_tokens_per_image": 16,
            "image_token_id": IMAGE,
            "boi_token_index": BEGIN,
            "eoi_token_index": END,
        },
        before=(LINE, BEGIN),
        after=(END, LINE),
    ),
    PaliGemma(
        "paligemma",
        {
            "vision_config": {**siglip(), "projection_dim": 32},
            "text_config": text("gemma"),
            "image_token_id": IMAGE,
            "projection_dim": 32,
        },
    ),
    Square("deepseek_vl", {"vision_config": siglip(), "text_config": text(), "image_token_id": IMAGE}),
    Square(
        "janus",
        {
            "vision_config": {
                "hidden_size": 24,
                "mlp_ratio": 2,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 4,
                "projection_dim": 32,
                "num_image_tokens": 16,
            },
            "vq_config": {
                "embed_dim": 4,
                "num_embeddings": 16,
                "latent_channels": 4,
                "base_channels": 32,
                "channel_multiplier": [1],
                "num_res_blocks": 1,
                "projection_dim": 32,
                "image_token_embed_dim": 32,
            },
            "text_config": text(),
            "image_token_id": IMAGE,
            "tie_word_embeddings": False,
        },
    ),
    Square(
        "video_llava",
        {
            "vision_config": vision("clip_vision_model"),
            "text_config": text(),
            "image_token_index": IMAGE,
            "video_token_index": VIDEO,
        },
    ),
    DeepseekVLHybrid(
        "deepseek_vl_hybrid",
        {
            "vision_config": siglip(),
            "high_res_vision_config": SAM,
            "text_config": text(),
            "image_token_id": IMAGE,
        },
    ),
    FastVLM(
        "fast_vlm",
        {
            "vision_config": T.AutoConfig.for_model(**CONVOLUTIONS),  # the released tower needs timm
            "text_config": text("qwen2"),
            "image_token_id": IMAGE,
        },
    ),
    *(
        Square(
            name,
            {"vision_config": SAM, "text_config": text("qwen2"), "image_token_id": IMAGE},
            before=(BEGIN,),
            after=(END,),
            pixels=64,
        )
        for name in ("got_ocr2", "pp_chart2table")
    ),
    Aria(
        "aria",
        {
            "vision_config": vision("idefics3_vision"),
            "text_config": text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
            "image_token_id": IMAGE,
            "projector_patch_to_query_dict": {16: 12},
        },
        before=(BEGIN,),
        after=(END,),
    ),
)
