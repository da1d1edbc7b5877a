"""Model architectures known by name, so that their cost can be computed without a download."""

from __future__ import annotations

from collections.abc import Callable

from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, PreTrainedConfig


def _llava_next_8b() -> PreTrainedConfig:
    """The paper's model, llama3-llava-next-8b-hf: CLIP ViT-L/14 at 336 pixels and Llama-3-8B, float16."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
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
        vision_config=vision,
        text_config=text,
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        image_token_index=128256,
        vision_feature_layer=-2,
        dtype="float16",
    )


ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {"llava-next-8b": _llava_next_8b}
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
