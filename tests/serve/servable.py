"""Tiny checkpoints as people have them, folders with weights and a processor, that both transformers and vLLM load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as T
from transformers import CLIPImageProcessor, LlavaOnevisionImageProcessor, LlavaOnevisionVideoProcessor
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

from gprune.scenes.model import CHAT_TEMPLATE, IMAGE, build_tokenizer

TILE, PATCH = 32, 4
EXTRA = ("<video>", "<image_start>", "<image_end>")
VIDEO = 128


def write_llava(folder: Path) -> Path:
    """CLIP and Llama."""
    tokenizer = _tokenizer()
    config = T.LlavaConfig(
        vision_config=_vision("clip_vision_model"),
        text_config=_text("llama", len(tokenizer)),
        image_token_index=IMAGE,
        image_seq_length=(TILE // PATCH) ** 2,
        vision_feature_layer=-2,
    )
    square = {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}}
    processor = T.LlavaProcessor(
        CLIPImageProcessor(**square),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return _write(T.LlavaForConditionalGeneration(config), processor, folder)


def write_onevision(folder: Path) -> Path:
    """SigLIP and Qwen2: a base view, and a grid whose lines end in newlines."""
    tokenizer = _tokenizer()
    pinpoints = [[TILE * rows, TILE * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
    config = T.LlavaOnevisionConfig(
        vision_config=_vision("siglip_vision_model", vision_use_head=False),
        text_config=_text("qwen2", len(tokenizer)),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    size = {"height": TILE, "width": TILE}
    processor = T.LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    return _write(T.LlavaOnevisionForConditionalGeneration(config), processor, folder)


def write_internvl(folder: Path) -> Path:
    """A tower of its own and Qwen2: tiles, and an overview after them."""
    tokenizer = _tokenizer()
    tokens = (TILE // PATCH // 2) ** 2
    config = T.InternVLConfig(
        vision_config={
            **_vision("internvl_vision"),
            "image_size": [TILE, TILE],
            "patch_size": [PATCH, PATCH],
        },
        text_config=_text("qwen2", len(tokenizer)),
        image_token_id=IMAGE,
        image_seq_length=tokens,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    size = {"height": TILE, "width": TILE}
    processor = T.InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=6),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=tokens,
        chat_template=CHAT_TEMPLATE,
    )
    return _write(T.InternVLForConditionalGeneration(config), processor, folder)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": write_llava,
    "llava_onevision": write_onevision,
    "internvl": write_internvl,
}
"""By model_type; of llava_next there is the model in the package."""


def _tokenizer() -> Any:
    """That of the model in the package, with what else processors ask for."""
    names = ("image_token", "context_image_token", "video_token", "start_image_token", "end_image_token")
    tokenizer = T.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=dict(zip(names, ("<image>", "<image>", *EXTRA), strict=True)),
        padding_side="left",
    )
    assert tokenizer.convert_tokens_to_ids(EXTRA[0]) == VIDEO
    return tokenizer


def _vision(model_type: str, **settings: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": PATCH,
        **settings,
    }


def _text(model_type: str, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _write(model: Any, processor: Any, folder: Path) -> Path:
    """Random weights, far larger than those of training, so that answers differ where tokens do."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("image_newline"):
                spread = 0.5 if "embed" in name or "newline" in name else 0.12
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
