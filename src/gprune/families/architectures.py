"""Model architectures known by name, so that their cost and speed can be computed without a download."""

from __future__ import annotations

from collections.abc import Callable

from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
)


def _clip() -> CLIPVisionConfig:
    """CLIP ViT-L/14 at 336 pixels."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


def _llava_next_8b() -> PreTrainedConfig:
    """The paper's model, llama3-llava-next-8b-hf: CLIP ViT-L/14 at 336 pixels and Llama-3-8B, float16."""
    text = LlamaConfig(
        vocab_size=128320,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    return LlavaNextConfig(
        vision_config=_clip(),
        text_config=text,
        image_grid_pinpoints=_ANY_RESOLUTION,
        image_token_index=128256,
        vision_feature_layer=-2,
        dtype="float16",
    )


_ANY_RESOLUTION = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _llava_next_half_b() -> PreTrainedConfig:
    """CLIP ViT-B/16 and Qwen2-0.5B by shape, as nobody published them: two CPU cores feel what is pruned, and bear it."""
    vision = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=336,
        patch_size=16,
    )
    text = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    return LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_grid_pinpoints=_ANY_RESOLUTION,
        image_token_index=151646,
        vision_feature_layer=-2,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )


def _llava_15_7b() -> PreTrainedConfig:
    """llava-1.5-7b-hf: CLIP ViT-L/14 at 336 pixels and Vicuna-7B, a Llama 2, float16."""
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    return LlavaConfig(
        vision_config=_clip(),
        text_config=text,
        image_token_index=32000,
        vision_feature_layer=-2,
        dtype="float16",
    )


def _qwen25_vl_7b() -> PreTrainedConfig:
    """Qwen2.5-VL-7B-Instruct: a tower with windowed attention, any resolution, and Qwen2.5-7B, bfloat16."""
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text, dtype="bfloat16")


def _smolvlm_256m() -> PreTrainedConfig:
    """SmolVLM-256M-Instruct: SigLIP-B/16 on tiles of 512 pixels, 64 tokens each, and SmolLM2-135M, bfloat16."""
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    }
    text = LlamaConfig(
        vocab_size=49280,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    return Idefics3Config(
        vision_config=vision, text_config=text, scale_factor=4, image_token_id=49190, dtype="bfloat16"
    )


ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llava-next-8b": _llava_next_8b,
    "llava-next-0.5b": _llava_next_half_b,
    "llava-1.5-7b": _llava_15_7b,
    "qwen2.5-vl-7b": _qwen25_vl_7b,
    "smolvlm-256m": _smolvlm_256m,
}
"""Makers of configs by name."""


def architecture(name: str) -> PreTrainedConfig:
    """A fresh transformers config of a named architecture.

    Raises:
        ValueError: no architecture has this name; the message lists those that exist.
    """
    if name not in ARCHITECTURES:
        raise ValueError(
            f"architecture {name!r} is unknown; known are {', '.join(ARCHITECTURES)}; "
            f"for any other model pass its config, for example transformers.AutoConfig.from_pretrained(path)"
        )
    return ARCHITECTURES[name]()
