"""Families that number text, time, height and width each on its own axis of the position ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from .base import Deepstack, Family, Layout, Media, Size, Video
from .grids import CELL, FRAMES, MERGE, PATCH, SPARSE, Flat, Stamped, VideoOfImages
from .parts import BEGIN, BREAK, END, FIRST, IMAGE, IMAGE_AND_VIDEO, LAST, LINE, TAG, VIDEO, text


class MRope(Flat):
    """A processor tells images from videos."""

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": self.kinds(ids)}

    def positions(self, model: Any, prompt: dict[str, Tensor]) -> Tensor:
        order = super().positions(model, prompt)
        shown = {name: grid for name, grid in prompt.items() if name.endswith("_grid_thw")}
        types = prompt["mm_token_type_ids"]
        axes = model.base_model.get_rope_index(prompt["input_ids"], mm_token_type_ids=types, **shown)[0]
        return torch.cat([order[None], axes])


class Qwen2VL(MRope):
    """The frames of a video follow each other without text between them."""

    takes_videos = True


class Qwen3VL(Deepstack, Stamped, MRope):
    """Features of inner layers of the vision tower may go to the LLM too."""


class CohereCompass(Qwen3VL):
    """Logits are scaled; layers without a window know no positions."""

    def logits(self, model: Any, ids: Tensor, arguments: dict[str, Any]) -> Tensor:
        return super().logits(model, ids, arguments) * model.config.text_config.logit_scale


class Qwen4Exp(Qwen3VL):
    """A layer looks neighbouring tokens up; every token attends to the few that an indexer picks by blocks."""

    def logits(self, model: Any, ids: Tensor, arguments: dict[str, Any]) -> Tensor:
        return super().logits(model, ids, {**arguments, "ple_input_ids": ids[None]})


class Cosmos3Edge(Qwen3VL):
    """A token of a video shows one frame."""

    together = 1


class HyV4(MRope):
    """Every line ends in a learned row, those of the frames of a video too; a token shows one frame."""

    takes_videos = True
    llm_attends = False
    together = 1

    def patches(self, grid: Tensor, generator: Generator) -> Tensor:
        return torch.randn(int(grid.prod()), 3 * PATCH**2, generator=generator)

    def grid(self, size: Size) -> Size:
        rows, columns = (math.ceil(pixels / CELL) for pixels in size)
        return rows, columns

    def frames_layout(self, frames: int, size: Size) -> Layout:
        rows, columns = self.grid(size)
        starts = [[(frame * rows + row) * (columns + 1) for row in range(rows)] for frame in range(frames)]
        views = [([start + column for start in own for column in range(columns)], (rows, columns)) for own in starts]
        return frames * rows * (columns + 1), [*views]


HEARD = ("input_features", "feature_attention_mask", "use_audio_in_video")
"""The arguments with the sounds of a call, which is one prompt alone."""


class Omni(MRope):
    """Sounds are numbered with what is seen; a video says how many seconds lie between its frames."""

    takes_videos = True

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        return {}

    def positions(self, model: Any, prompt: dict[str, Tensor]) -> Tensor:
        order = Family.positions(self, model, prompt)
        shown = {name: grid for name, grid in prompt.items() if name.endswith("_grid_thw")}
        heard = prompt.get("feature_attention_mask")
        axes = model.base_model.get_rope_index(
            prompt["input_ids"],
            attention_mask=torch.ones_like(prompt["input_ids"]),
            second_per_grids=prompt.get("video_second_per_grid"),
            audio_seqlens=None if heard is None else heard.sum(1),
            use_audio_in_video="use_audio_in_video" in prompt,
            **shown,
        )[0]
        return torch.cat([order[None].to(axes.dtype), axes])

    def video_pixels(self, video: Video, generator: Generator) -> dict[str, Tensor]:
        return super().video_pixels(video, generator) | {"video_second_per_grid": torch.tensor([0.5])}

    def cut(self, inputs: dict[str, Tensor], row: int, images: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        heard = {name: inputs[name] for name in HEARD if name in inputs}
        return super().cut(inputs, row, images) | heard


class Qwen3Omni(Deepstack, Omni):
    """Features of inner layers of the vision tower go to the LLM too."""


class Ernie(MRope):
    """What is seen is taken by experts of its own; a token of a video shows two frames."""

    takes_videos = True

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        return {**super().token_types(ids), "moe_mm_token_type_ids": self.experts(ids)}

    def experts(self, ids: Tensor) -> Tensor:
        shown = (ids == IMAGE) | (ids == BEGIN) | (ids == END)
        return shown.long() + 2 * (ids == VIDEO)

    def video_pixels(self, video: Video, generator: Generator) -> dict[str, Tensor]:
        grid = self.patch_grid(*video)
        return {"pixel_values_videos": self.patches(grid, generator), "video_grid_thw": grid}

    def patches(self, grid: Tensor, generator: Generator) -> Tensor:
        return torch.randn(int(grid.prod()), 3 * PATCH**2, generator=generator)


class PaddleOCR(MRope):
    """Patches are squares, row by row."""

    def patches(self, grid: Tensor, generator: Generator) -> Tensor:
        return torch.randn(int(grid.prod()), 3, PATCH, PATCH, generator=generator)


class Glm(VideoOfImages, MRope):
    """A call is taken for one of images alone or of videos alone."""

    takes_both = False


def _settings(text_config: dict[str, Any], **vision_config: Any) -> dict[str, Any]:
    tower = {
        "depth": 2,
        "hidden_size": 16,
        "out_hidden_size": 32,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES,
        **vision_config,
    }
    return {"text_config": text_config, "vision_config": tower, **IMAGE_AND_VIDEO}


def _rope(*sections: int, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [*sections], **settings}}


def _thinker(text_config: dict[str, Any], **vision_config: Any) -> dict[str, Any]:
    sounds = {
        "num_mel_bins": 8,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "d_model": 16,
        "n_window": 50,
        "output_dim": 32,
    }
    return {
        **_settings(text_config, **vision_config),
        "audio_config": sounds,
        **QWEN,
        "audio_token_id": TAG,
        "audio_start_token_id": LINE,
        "audio_end_token_id": BREAK,
        "position_id_per_seconds": 5,
    }


QWEN = {"vision_start_token_id": BEGIN, "vision_end_token_id": END}
QWEN3 = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
HYBRID = LINEAR | _rope(1, 1, 0, partial_rotary_factor=0.5)
GLM_ROPE = _rope(1, 1, 2, partial_rotary_factor=1.0)
GLM = {
    "image_start_token_id": BEGIN,
    "image_end_token_id": END,
    "video_start_token_id": FIRST,
    "video_end_token_id": LAST,
}
AROUND = (BEGIN,), (END,)

MROPE: tuple[Family, ...] = (
    Qwen2VL(
        "qwen2_vl",
        _settings(text("qwen2_vl_text", **_rope(1, 1, 2)), embed_dim=16, hidden_size=32, mlp_ratio=2) | QWEN,
        *AROUND,
    ),
    Qwen2VL(
        "qwen2_5_vl",
        _settings(text("qwen2_5_vl_text", **_rope(1, 1, 2)), window_size=16, fullatt_block_indexes=[1]) | QWEN,
        *AROUND,
    ),
    Qwen3VL("qwen3_vl", _settings(text("qwen3_vl_text", **_rope(2, 1, 1)), **QWEN3) | QWEN, *AROUND),
    Qwen3VL(
        "qwen3_vl_moe",
        _settings(text("qwen3_vl_moe_text", num_hidden_layers=3, **EXPERTS, **_rope(2, 1, 1)), **QWEN3) | QWEN,
        *AROUND,
    ),
    Qwen3VL("cosmos3_omni", _settings(text("qwen3_vl_text", **_rope(2, 1, 1)), **QWEN3) | QWEN, *AROUND),
    CohereCompass(
        "cohere_compass",
        _settings(
            text(
                "cohere_compass_text",
                layer_types=["sliding_attention", "full_attention"],
                sliding_window=512,
                rope_parameters={"sliding_attention": _rope(2, 1, 1)["rope_parameters"], "full_attention": None},
                logit_scale=0.5,
            ),
            **QWEN3,
        )
        | QWEN,
        *AROUND,
    ),
    Cosmos3Edge(
        "cosmos3_edge",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
                "num_patches": 64,
            },
            "text_config": text("cosmos3_edge_text", **_rope(2, 1, 1)),
            **IMAGE_AND_VIDEO,
            **QWEN,
            "projector_hidden_size": 24,
        },
        *AROUND,
    ),
    HyV4(
        "hy_v4_vl",
        {
            "vision_config": {
                "hidden_size": 16,
                "out_hidden_size": 32,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
                "max_image_size": 32,
            },
            "text_config": text(
                "hy_v4_vl_text",
                q_lora_rank=16,
                kv_lora_rank=16,
                qk_rope_head_dim=8,
                qk_nope_head_dim=8,
                v_head_dim=8,
                index_topk=12,
                index_head_dim=16,
                index_n_heads=16,
                indexer_types=["full", "shared"],
                mlp_layer_types=["dense", "sparse"],
                hc_mult=2,
                n_routed_experts=4,
                num_experts_per_tok=2,
                n_shared_experts=1,
                moe_intermediate_size=16,
                **_rope(1, 1, 2),
            ),
            **IMAGE_AND_VIDEO,
        },
        *AROUND,
    ),
    Ernie(
        "ernie4_5_vl_moe",
        {
            "vision_config": {
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
            },
            "text_config": text(
                "ernie4_5_vl_moe_text",
                moe_intermediate_size=[16, 16],
                moe_num_experts=4,
                moe_k=2,
                moe_num_shared_experts=1,
                mlp_layer_types=["dense", "sparse"],
                **_rope(1, 1, 2),
            ),
            **IMAGE_AND_VIDEO,
            "image_start_token_id": BEGIN,
            "image_end_token_id": END,
            "tie_word_embeddings": False,
        },
        *AROUND,
    ),
    Omni(
        "qwen2_5_omni_thinker",
        _thinker(
            text("qwen2_5_omni_text", **_rope(1, 1, 2)),
            window_size=16,
            fullatt_block_indexes=[1],
        ),
        *AROUND,
    ),
    Qwen3Omni(
        "qwen3_omni_moe_thinker",
        _thinker(text("qwen3_omni_moe_text", num_hidden_layers=3, **EXPERTS, **_rope(2, 1, 1)), **QWEN3),
        *AROUND,
    ),
    PaddleOCR(
        "paddleocr_vl",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
            },
            "text_config": text("paddleocr_vl_text", **_rope(1, 1, 2)),
            **IMAGE_AND_VIDEO,
            **QWEN,
            "tie_word_embeddings": False,
        },
        *AROUND,
    ),
    Qwen3VL(
        "qwen3_5",
        _settings(text("qwen3_5_text", **HYBRID), num_position_embeddings=64) | QWEN,
        *AROUND,
        spread=0.08,
    ),
    Qwen3VL(
        "qwen3_5_moe",
        _settings(
            text("qwen3_5_moe_text", **HYBRID, **EXPERTS, shared_expert_intermediate_size=16),
            num_position_embeddings=64,
        )
        | QWEN,
        *AROUND,
        spread=0.08,
    ),
    Qwen4Exp(
        "qwen4_exp",
        _settings(
            text(
                "qwen4_exp_text",
                **LINEAR | {"layer_types": ["linear_attention", "indexed_attention"]},
                **_rope(1, 1, 0, partial_rotary_factor=0.5),
                **EXPERTS,
                shared_expert_intermediate_size=16,
                hc_count=2,
                hc_lowrank=4,
                ple_layer_ids=[1],
                ngram_vocab_size_base=20,
                heads_per_ngram=2,
                indexer_n_heads=16,
                indexer_kv_heads=1,
                indexer_head_dim=8,
                indexer_budget=12,
                indexer_compress_ratio=2,
            )
            | {"eos_token_id": 2},
            num_position_embeddings=64,
        )
        | QWEN,
        *AROUND,
        spread=0.08,
    ),
    Glm("glm4v", _settings(text("glm4v_text", **GLM_ROPE), image_size=32) | GLM, *AROUND),
    Glm("glm46v", _settings(text("glm4v_text", **GLM_ROPE), image_size=32) | GLM, *AROUND),
    Glm("glmga", _settings(text("glm4v_text", **GLM_ROPE), image_size=32) | GLM, *AROUND),
    Glm("glm4v_moe", _settings(text("glm4v_moe_text", **SPARSE, **GLM_ROPE), image_size=32) | GLM, *AROUND),
    Glm("glm_ocr", _settings(text("glm_ocr_text", **GLM_ROPE)) | GLM, *AROUND),
)
