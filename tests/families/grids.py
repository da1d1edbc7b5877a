"""Families that keep the shape of an image: one view whose grid follows from its size."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import transformers
from packaging.version import Version
from torch import Generator, Tensor

from .base import Family, Layout, Size, Text, Video, is_visual
from .parts import BEGIN, BREAK, END, FIRST, IMAGE, IMAGE_AND_VIDEO, LAST, LINE, TAG, VIDEO, VOCABULARY, text, vision

PATCH, MERGE = 4, 2
CELL = PATCH * MERGE
"""Side in pixels of what one token shows."""

FRAMES = 2
"""Frames that one token of a video shows."""


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

    def kinds(self, ids: Tensor) -> Tensor:
        """int64 [...]: 1 for visual tokens of images, 2 for those of videos, 0 for text."""
        return (ids == IMAGE).long() + 2 * (ids == VIDEO)

    def patch_grid(self, frames: int, size: Size) -> Tensor:
        """int64 [1, 3]: frames, rows and columns of patches."""
        rows, columns = self.grid(size)
        return torch.tensor([[frames, rows * MERGE, columns * MERGE]])


class Flat(Grid):
    """Pixels come as flat patches, those of a token one after the other; the frames of a video follow each other."""

    together: ClassVar[int] = FRAMES

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        grid = self.patch_grid(1, size)
        return {"pixel_values": self.patches(grid, generator), "image_grid_thw": grid}

    def video_layout(self, video: Video) -> Layout:
        return self.frames_layout(math.ceil(video[0] / self.together), video[1])

    def video_pixels(self, video: Video, generator: Generator) -> dict[str, Tensor]:
        grid = self.patch_grid(math.ceil(video[0] / self.together), video[1])
        return {"pixel_values_videos": self.patches(grid, generator), "video_grid_thw": grid}

    def patches(self, grid: Tensor, generator: Generator) -> Tensor:
        """The patches of an image or a video."""
        return torch.randn(int(grid.prod()), 3 * self.together * PATCH**2, generator=generator)


class Stamped(Flat):
    """A time stamp stands before every frame of a video."""

    takes_videos = True

    def video_ids(self, video: Video, text: Text) -> list[int]:
        views = self.layout(video)[1]
        frames = [token for rows, _ in views for token in (*text(3), BEGIN, *[VIDEO] * len(rows), END)]
        return [*self.before, *frames, *self.after]


class VideoOfImages(Stamped):
    """The frames of a video stand in the prompt as images do, between a token that begins it and one that ends it."""

    def video_ids(self, video: Video, text: Text) -> list[int]:
        ids = [IMAGE if token == VIDEO else token for token in super().video_ids(video, text)]
        return [FIRST, *ids[len(self.before) : len(ids) - len(self.after)], LAST]

    def kinds(self, ids: Tensor) -> Tensor:
        return (ids == IMAGE) * (1 + ((ids == FIRST).cumsum(-1) > (ids == LAST).cumsum(-1)).long())


class ClipsOfText(Flat):
    """The frames of a video follow each other without text between them, and are numbered like text."""

    takes_videos = True


class HyperClovaX(ClipsOfText):
    """Logits are scaled."""

    def logits(self, model: Any, ids: Tensor, arguments: dict[str, Any]) -> Tensor:
        return super().logits(model, ids, arguments) * model.config.text_config.logits_scaling


class LightOnOcr(Grid):
    """Images of a batch are padded to the largest."""

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        height, width = (cells * CELL for cells in self.grid(size))
        return {
            "pixel_values": torch.randn(1, 3, height, width, generator=generator),
            "image_sizes": torch.tensor([[height, width]]),
        }


class Mistral3(LightOnOcr):
    """Text tokens break the lines of an image."""

    def image_ids(self, size: Size, text: Text) -> list[int]:
        rows, columns = self.grid(size)
        return [*([*[IMAGE] * columns, BREAK] * rows)[:-1], END]


class MistralLarge4(Mistral3):
    """Logits are capped; every token attends to the few that an indexer picks."""

    def logits(self, model: Any, ids: Tensor, arguments: dict[str, Any]) -> Tensor:
        cap = model.config.text_config.final_logit_softcapping
        return cap * torch.tanh(super().logits(model, ids, arguments) / cap)


class MuseGlimmer(Stamped):
    """Logits are scaled and capped."""

    reads_placeholders = False

    def logits(self, model: Any, ids: Tensor, arguments: dict[str, Any]) -> Tensor:
        settings = model.config.text_config
        cap = settings.final_logit_softcapping
        return cap * torch.tanh(super().logits(model, ids, arguments) * settings.output_multiplier / cap)


class VideoLlama3(Stamped):
    """Every image says how many of its patches a token is made of; the processor leaves tokens of videos out."""

    together = 1

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        pixels = super().image_pixels(size, generator)
        return pixels | {"image_merge_sizes": torch.tensor([MERGE])}

    def left(self, video: Video) -> Tensor:
        """bool [frames, area]: the tokens of a video that are not left out: all of the first frame, some of others."""
        area = math.prod(self.grid(video[1]))
        places = torch.arange(video[0])[:, None] + torch.arange(area)
        return (places % 3 < 2) | (torch.arange(video[0])[:, None] == 0)

    def shown_rows(self, features: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return features[inputs["video_compression_mask"]] if inputs else features

    def video_layout(self, video: Video) -> Layout:
        left, grid = self.left(video), self.grid(video[1])
        rows = torch.arange(int(left.sum())).split(left.sum(1).tolist())
        return int(left.sum()), [
            (own.tolist(), grid if bool(all_left) else None) for own, all_left in zip(rows, left.all(1), strict=True)
        ]

    def video_pixels(self, video: Video, generator: Generator) -> dict[str, Tensor]:
        pixels = super().video_pixels(video, generator)
        return pixels | {
            "video_merge_sizes": torch.tensor([MERGE]),
            "video_compression_mask": self.left(video).flatten(),
        }

    def patches(self, grid: Tensor, generator: Generator) -> Tensor:
        return torch.randn(int(grid.prod()), 3 * PATCH**2, generator=generator)


class Glm5Next(VideoOfImages):
    """The LLM knows no positions; every token attends to the few that an indexer picks by blocks."""

    knows_positions = False

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": self.kinds(ids)}


class KimiK25(Flat):
    """Pixels come as patches, row by row; a token shows all frames of a clip."""

    reads_placeholders = False
    takes_videos = Version(transformers.__version__) >= Version("5.24")

    def video_layout(self, video: Video) -> Layout:
        return self.image_layout(video[1])

    def video_ids(self, video: Video, text: Text) -> list[int]:
        return [*text(3), *super().video_ids(video, text)]

    def video_pixels(self, video: Video, generator: Generator) -> dict[str, Tensor]:
        grid = self.patch_grid(*video)
        return {"pixel_values_videos": self.patches(grid, generator), "video_grid_thw": grid}

    def patches(self, grid: Tensor, generator: Generator) -> Tensor:
        return torch.randn(int(grid.prod()), 3, PATCH, PATCH, generator=generator)


class Gemma4Unified(Stamped):
    """Pixels come as patches with their places, padded to as many for every image.

    The tokens of an image see each other both ways.
    """

    most = 8
    reads_placeholders = False
    merge: ClassVar[int] = 1
    """Patches of a token along a side; elsewhere their pixels are one patch."""

    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        rows, columns = (cells * self.merge for cells in self.grid(size))
        pixels = torch.zeros(1, (self.most * self.merge) ** 2, 3 * (CELL // self.merge) ** 2)
        places = torch.full((1, pixels.shape[1], 2), -1)
        pixels[:, : rows * columns] = torch.rand(rows * columns, pixels.shape[2], generator=generator)
        places[:, : rows * columns] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)
        return {"pixel_values": pixels, "image_position_ids": places}

    def video_layout(self, video: Video) -> Layout:
        return self.frames_layout(*video)

    def video_pixels(self, video: Video, generator: Generator) -> dict[str, Tensor]:
        frames = [self.image_pixels(video[1], generator) for _ in range(video[0])]
        return {
            "pixel_values_videos": torch.cat([frame["pixel_values"] for frame in frames]),
            "video_position_ids": torch.cat([frame["image_position_ids"] for frame in frames]),
            "num_frames_per_video": torch.tensor([video[0]]),
        }

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": self.kinds(ids)}

    def blocks(self, ids: Tensor) -> Tensor:
        shown = is_visual(ids)
        starts = shown & ~shown.roll(1, -1)
        return torch.where(shown, starts.cumsum(-1), -1)


class Gemma4(Gemma4Unified):
    """Every layer has inputs of its own, looked up by token; the last takes the keys and values of one before it.

    Layers with a sliding window see the tokens of an image both ways, the others do not.
    """

    merge = MERGE

    def logits(self, model: Any, ids: Tensor, arguments: dict[str, Any]) -> Tensor:
        mask = arguments["attention_mask"]
        if mask.ndim == 4:
            causal = torch.full_like(mask, mask.min().item()).triu(1)
            mask = {"sliding_attention": mask, "full_attention": causal}
        per_layer = model.get_decoder().get_per_layer_inputs(ids[None].masked_fill(is_visual(ids), 0), None)
        return super().logits(model, ids, {**arguments, "attention_mask": mask, "per_layer_inputs": per_layer})


PIXTRAL = vision("pixtral", image=Grid.most * CELL, patch=PATCH, head_dim=12)
WINDOWED = {
    "depth": 2,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": FRAMES,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}
"""A tower whose layers but some see windows alone."""

SPARSE = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}

MUSE_LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 512}
MUSE = {
    "vision_config": {
        "patch_size": PATCH,
        "patch_temporal": FRAMES,
        "merge_size": MERGE,
        "pos_emb_height": 4,
        "pos_emb_width": 4,
        "max_position_embeddings": 16,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "layer_types": ["window_attention", "full_attention"],
    },
    **IMAGE_AND_VIDEO,
    "out_hidden_size": 64,
    "projector_hidden_size": 24,
    "tie_word_embeddings": False,
}

GRIDS: tuple[Family, ...] = (
    LightOnOcr(
        "lighton_ocr",
        {
            "vision_config": PIXTRAL,
            "text_config": text("qwen3"),
            "image_token_id": IMAGE,
            "spatial_merge_size": MERGE,
            "tie_word_embeddings": False,
        },
    ),
    ClipsOfText(
        "exaone4_5",
        {
            "vision_config": WINDOWED | {"num_key_value_heads": 1},
            "text_config": text(
                "exaone4",
                num_hidden_layers=3,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                sliding_window=512,
            ),
            **IMAGE_AND_VIDEO,
        },
        before=(BEGIN,),
        after=(END,),
    ),
    HyperClovaX(
        "hyperclovax_vision_v2",
        {
            "vision_config": WINDOWED | {"model_type": "qwen2_5_vl_vision"},
            "text_config": text(
                "hyperclovax",
                embedding_multiplier=2.0,
                logits_scaling=0.5,
                residual_multiplier=0.7,
                attention_multiplier=0.3,
            ),
            **IMAGE_AND_VIDEO,
            "tie_word_embeddings": False,
        },
        before=(BEGIN,),
        after=(END,),
    ),
    Stamped(
        "lfm3_vl",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "layer_types": ["conv", "full_attention"],
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
                "temporal_patch_size": FRAMES,
            },
            "text_config": text(
                "lfm3",
                num_hidden_layers=3,
                layer_types=["conv", "full_attention", "sliding_attention"],
                sliding_window=512,
            ),
            **IMAGE_AND_VIDEO,
            "vision_start_token_id": BEGIN,
            "vision_end_token_id": END,
            "projector_hidden_size": 24,
            "tie_word_embeddings": False,
        },
        before=(BEGIN,),
        after=(END,),
    ),
    Mistral3(
        "mistral3",
        {
            "vision_config": PIXTRAL,
            "text_config": text("mistral", sliding_window=None),
            "image_token_id": IMAGE,
            "spatial_merge_size": MERGE,
            "vision_feature_layer": -1,
        },
    ),
    MistralLarge4(
        "mistral_large4",
        {
            "vision_config": PIXTRAL,
            "text_config": text(
                "mistral_large4_text",
                num_hidden_layers=3,
                num_key_value_heads=4,
                no_rope_layers=[1, 0, 1],
                kv_source_layers=[0, 1, 0],
                kv_lora_rank=16,
                qk_rope_head_dim=8,
                qk_nope_head_dim=8,
                v_head_dim=8,
                index_topk=12,
                index_head_dim=8,
                index_n_heads=16,
                **SPARSE,
            ),
            "image_token_id": IMAGE,
            "spatial_merge_size": MERGE,
            "vision_feature_layer": -1,
        },
    ),
    MuseGlimmer(
        "muse_glimmer",
        {"text_config": text("muse_glimmer_text", **MUSE_LAYERS), **MUSE},
        before=(BEGIN,),
        after=(END,),
    ),
    MuseGlimmer(
        "muse_spark",
        {
            "text_config": text(
                "muse_spark_text",
                **MUSE_LAYERS,
                mlp_layer_types=["dense", "sparse"],
                num_local_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                moe_hidden_size=16,
            ),
            "audio_config": {
                "patch_sizes": [4],
                "hidden_sizes": [8],
                "depths": [1],
                "num_hidden_layers": 1,
                "out_hidden_size": 32,
            },
            "audio_token_id": VOCABULARY,
            **MUSE,
        },
        before=(BEGIN,),
        after=(END,),
    ),
    VideoLlama3(
        "video_llama_3",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": PATCH,
            },
            "text_config": text("qwen2"),
            **IMAGE_AND_VIDEO,
        },
    ),
    Gemma4Unified(
        "gemma4_unified",
        {
            "vision_config": {
                "patch_size": PATCH,
                "pooling_kernel_size": MERGE,
                "mm_embed_dim": 16,
                "mm_posemb_size": 16,
                "output_proj_dims": 16,
            },
            "text_config": text(
                "gemma4_unified_text",
                num_hidden_layers=3,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                sliding_window=512,
                global_head_dim=8,
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
    Glm5Next(
        "glm5_next",
        {
            "vision_config": {
                "depth": 2,
                "hidden_size": 16,
                "out_hidden_size": 32,
                "intermediate_size": 24,
                "projection_intermediate_size": 24,
                "num_heads": 2,
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
                "temporal_patch_size": FRAMES,
            },
            "text_config": text(
                "glm5_next_text",
                num_key_value_heads=4,
                layer_types=["linear_attention", "indexed_attention"],
                linear_head_dim=8,
                linear_num_heads=2,
                mlp_layer_types=["dense", "sparse"],
                q_lora_rank=16,
                kv_lora_rank=16,
                qk_nope_head_dim=8,
                v_head_dim=8,
                index_topk=12,
                index_kpool=2,
                index_head_dim=8,
                index_n_heads=16,
                hc_mult=2,
                hc_sinkhorn_iters=2,
                n_routed_experts=4,
                num_experts_per_tok=2,
                n_shared_experts=1,
                moe_intermediate_size=16,
            ),
            **IMAGE_AND_VIDEO,
            "image_start_token_id": BEGIN,
            "image_end_token_id": END,
            "video_start_token_id": FIRST,
            "video_end_token_id": LAST,
        },
        before=(BEGIN,),
        after=(END,),
    ),
    KimiK25(
        "kimi_k25",
        {
            "vision_config": {
                "patch_size": PATCH,
                "pos_emb_height": 8,
                "pos_emb_width": 8,
                "pos_emb_time": 8,
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
                n_group=1,
                topk_group=1,
                **SPARSE,
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
