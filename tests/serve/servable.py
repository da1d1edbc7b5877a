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
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from gprune.scenes.model import CHAT_TEMPLATE, IMAGE, build_tokenizer

TILE, PATCH = 32, 4
EXTRA = ("<video>", "<image_start>", "<image_end>")
VIDEO = 128
CELL = 2 * PATCH
"""Side in pixels of what one token of a Qwen model shows."""
TEXT_WIDTH = 128
QWEN_TOWER = {"hidden_size": 64, "intermediate_size": 128, "out_hidden_size": TEXT_WIDTH}
QWEN = {
    "vision_start": "<|vision_start|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_end": "<|vision_end|>",
}


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


def write_qwen2_vl(folder: Path) -> Path:
    """Images of any size, positions along three axes."""
    tower = {"embed_dim": 64, "hidden_size": TEXT_WIDTH, "mlp_ratio": 2}
    processor = _qwen_processor(T.Qwen2VLProcessor, Qwen2VLVideoProcessor)
    return _write(T.Qwen2VLForConditionalGeneration(_qwen(T.Qwen2VLConfig, processor, tower)), processor, folder)


def write_qwen2_5_vl(folder: Path) -> Path:
    """The same with a tower that mostly looks at windows."""
    tower = {"window_size": 4 * PATCH, "fullatt_block_indexes": [1], **QWEN_TOWER}
    processor = _qwen_processor(T.Qwen2_5_VLProcessor, Qwen2VLVideoProcessor)
    return _write(T.Qwen2_5_VLForConditionalGeneration(_qwen(T.Qwen2_5_VLConfig, processor, tower)), processor, folder)


def write_qwen3_vl(folder: Path) -> Path:
    """The same, and features of inner layers of the tower go to layers of the LLM."""
    tower = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1], **QWEN_TOWER}
    processor = _qwen_processor(T.Qwen3VLProcessor, Qwen3VLVideoProcessor)
    config = _qwen(T.Qwen3VLConfig, processor, tower, mrope_interleaved=True)
    return _write(T.Qwen3VLForConditionalGeneration(config), processor, folder)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": write_llava,
    "llava_onevision": write_onevision,
    "internvl": write_internvl,
}
"""By model_type; of llava_next there is the model in the package."""

EXPERIMENTAL: dict[str, Callable[[Path], Path]] = {
    "qwen2_5_vl": write_qwen2_5_vl,
    "qwen2_vl": write_qwen2_vl,
    "qwen3_vl": write_qwen3_vl,
}


def _qwen(kind: type[Any], processor: Any, tower: dict[str, Any], **rope: Any) -> Any:
    ids = {f"{name}_token_id": processor.tokenizer.convert_tokens_to_ids(token) for name, token in QWEN.items()}
    text = _text("", len(processor.tokenizer))
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], **rope}
    del text["model_type"]
    vision = {
        "depth": 3,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        **tower,
    }
    return kind(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


def _qwen_processor(kind: type[Any], videos: type[Any]) -> Any:
    tokenizer = _with_tokens({f"{name}_token": token for name, token in QWEN.items()})
    template = CHAT_TEMPLATE.replace("<image>", QWEN["vision_start"] + QWEN["image"] + QWEN["vision_end"])
    pixels = {"shortest_edge": 4 * CELL**2, "longest_edge": 300 * CELL**2}
    sizes = {"size": pixels, "patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
    return kind(Qwen2VLImageProcessor(**sizes), tokenizer, videos(**sizes), chat_template=template)


def _with_tokens(extra: dict[str, str]) -> Any:
    """The tokenizer of the model in the package with further special tokens, by name."""
    return T.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=extra,
        padding_side="left",
    )


def _tokenizer() -> Any:
    """That of the model in the package, with what else processors ask for."""
    names = ("image_token", "context_image_token", "video_token", "start_image_token", "end_image_token")
    tokenizer = _with_tokens(dict(zip(names, ("<image>", "<image>", *EXTRA), strict=True)))
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
        "hidden_size": TEXT_WIDTH,
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
