"""The parts that tiny models are made of, as settings of a config."""

from __future__ import annotations

from typing import Any

import transformers
from packaging.version import Version

IMAGE, VIDEO, VOCABULARY = 90, 91, 96
BEGIN, END, LINE, BREAK, TAG, GLOBAL = 88, 89, 92, 93, 94, 95
FIRST, LAST = LINE, BREAK
"""Token ids with a meaning; 3 to 87 are text, 0 is padding, 1 is the beginning of the sequence."""

IMAGE_AND_VIDEO = {"image_token_id": IMAGE, "video_token_id": VIDEO}

SAYS_LAYER = Version(transformers.__version__) >= Version("5.24")
VIPLLAVA_LAYERS = "vision_feature_layer" if SAYS_LAYER else "vision_feature_layers"
"""What transformers calls the layers of the tower that VipLLaVA's features are made of."""


def text(model_type: str = "llama", **settings: Any) -> dict[str, Any]:
    """A text model with two layers and a width of 32."""
    return {
        "model_type": model_type,
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        **settings,
    }


def vision(model_type: str, *, image: int = 16, patch: int = 4, **settings: Any) -> dict[str, Any]:
    """A vision tower with two layers and a width of 24 for square images of that many pixels."""
    return {
        "model_type": model_type,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image,
        "patch_size": patch,
        **settings,
    }


def siglip(*, image: int = 16, patch: int = 4) -> dict[str, Any]:
    """The same of SigLIP: no class token, no pooling head."""
    return vision("siglip_vision_model", image=image, patch=patch, vision_use_head=False)
