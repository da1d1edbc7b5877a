"""Tiny checkpoints as people have them, folders with weights and a processor, that both transformers and vLLM load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as T
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, LlavaOnevisionImageProcessor, LlavaOnevisionVideoProcessor
from transformers.models.glm4v.image_processing_glm4v import Glm4vImageProcessor
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.idefics3.image_processing_idefics3 import Idefics3ImageProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.pixtral.image_processing_pixtral import PixtralImageProcessor
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
MOST = 12
"""Tokens of the longest side of an image of Pixtral."""
TILES: dict[str, Any] = {"size": {"longest_edge": 3 * TILE}, "max_image_size": {"longest_edge": TILE}}
GLM = {
    "image_start": "<|begin_of_image|>",
    "image": "<|image|>",
    "image_end": "<|end_of_image|>",
    "video_start": "<|begin_of_video|>",
    "video": "<|video|>",
    "video_end": "<|end_of_video|>",
}
QWEN_VIDEO = QWEN["vision_start"], QWEN["video"], QWEN["vision_end"]
GLM_VIDEO = GLM["video_start"], GLM["video"], GLM["video_end"]
"""What stands for a video in a prompt."""

ROPE = ("mrope_interleaved", "partial_rotary_factor")
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
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


def write_llava_pixtral(folder: Path) -> Path:
    """Pixtral and Llama: images of any shape, whose lines end in a token of text."""
    processor = _pixtral_processor(merge=1)
    config = T.LlavaConfig(
        vision_config=_vision("pixtral", head_dim=32, image_size=MOST * CELL),
        text_config=_text("llama", len(processor.tokenizer)),
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return _write(T.LlavaForConditionalGeneration(config), processor, folder)


def write_mistral3(folder: Path) -> Path:
    """Pixtral and Mistral: the same, with four patches a token."""
    processor = _pixtral_processor(merge=2)
    config = T.Mistral3Config(
        vision_config=_vision("pixtral", head_dim=32, image_size=MOST * CELL),
        text_config=_text("mistral", len(processor.tokenizer)) | {"sliding_window": None},
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        spatial_merge_size=2,
    )
    return _write(T.Mistral3ForConditionalGeneration(config), processor, folder)


def write_idefics3(folder: Path) -> Path:
    """SigLIP and Llama: tiles that tokens of text tell apart, and an overview after them."""
    tokenizer = _tiles_tokenizer()
    image_processor = Idefics3ImageProcessor(**TILES)
    processor = T.Idefics3Processor(image_processor, tokenizer, image_seq_len=16, chat_template=CHAT_TEMPLATE)
    return _write(T.Idefics3ForConditionalGeneration(_tiles(T.Idefics3Config, tokenizer)), processor, folder)


def write_smolvlm(folder: Path) -> Path:
    """The same, with a processor of videos too."""
    from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    tokenizer = _tiles_tokenizer()
    videos = SmolVLMVideoProcessor(**TILES, video_sampling={"fps": 1, "max_frames": 4, "video_size": TILES["size"]})
    processor = T.SmolVLMProcessor(
        SmolVLMImageProcessor(**TILES), tokenizer, videos, image_seq_len=16, chat_template=CHAT_TEMPLATE
    )
    return _write(T.SmolVLMForConditionalGeneration(_tiles(T.SmolVLMConfig, tokenizer)), processor, folder)


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


def write_qwen3_vl_moe(folder: Path) -> Path:
    """The same with experts."""
    tower = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1], **QWEN_TOWER}
    processor = _qwen_processor(T.Qwen3VLProcessor, Qwen3VLVideoProcessor)
    config = _qwen(T.Qwen3VLMoeConfig, processor, tower, mrope_interleaved=True, **EXPERTS)
    _write(T.Qwen3VLMoeForConditionalGeneration(config), processor, folder)
    weights = load_file(folder / "model.safetensors")
    weights = {name: each.mT.contiguous() if ".experts." in name else each for name, each in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})  # as those who trained it wrote experts
    return folder


def write_glm4v(folder: Path) -> Path:
    """Images of any size, positions along three axes."""
    processor = _glm_processor()
    return _write(T.Glm4vForConditionalGeneration(_glm(T.Glm4vConfig, processor)), processor, folder)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": write_llava,
    "llava_onevision": write_onevision,
    "internvl": write_internvl,
    "llava_pixtral": write_llava_pixtral,
    "mistral3": write_mistral3,
    "idefics3": write_idefics3,
    "smolvlm": write_smolvlm,
}
"""By model_type and where it matters tower; of llava_next there is the model in the package."""

EXPERIMENTAL: dict[str, Callable[[Path], Path]] = {
    "qwen2_5_vl": write_qwen2_5_vl,
    "qwen2_vl": write_qwen2_vl,
    "qwen3_vl": write_qwen3_vl,
    "qwen3_vl_moe": write_qwen3_vl_moe,
    "glm4v": write_glm4v,
}


def _pixtral_processor(merge: int) -> Any:
    tokenizer = _with_tokens({"image_token": "[IMG]", "break_token": "[IMG_BREAK]", "end_token": "[IMG_END]"})
    size = {"longest_edge": MOST * CELL}
    return T.PixtralProcessor(
        PixtralImageProcessor(size=size, patch_size={"height": PATCH, "width": PATCH}),
        tokenizer,
        patch_size=PATCH,
        spatial_merge_size=merge,
        chat_template=CHAT_TEMPLATE.replace("<image>", "[IMG]"),
    )


def _tiles_tokenizer() -> Any:
    names = ["fake_token_around_image", "end_of_utterance", "global-img", *_tile_names("row_{}_col_{}")]
    return _with_tokens({"image_token": "<image>", **{f"{name}_token": f"<{name}>" for name in names}})


def _tile_names(pattern: str) -> list[str]:
    return [pattern.format(row, column) for row in range(1, 7) for column in range(1, 7)]


def _tiles(kind: type[Any], tokenizer: Any) -> Any:
    vision = {name: value for name, value in _vision("").items() if name != "model_type"}
    return kind(
        vision_config=vision,
        text_config=_text("llama", len(tokenizer)),
        image_token_id=IMAGE,
        scale_factor=2,
        tie_word_embeddings=False,
    )


def _qwen(kind: type[Any], processor: Any, tower: dict[str, Any], **text: Any) -> Any:
    ids = {f"{name}_token_id": processor.tokenizer.convert_tokens_to_ids(token) for name, token in QWEN.items()}
    return kind(**_placed(processor, tower, **text), **ids)


def _glm(kind: type[Any], processor: Any, **text: Any) -> Any:
    ids = {f"{name}_token_id": processor.tokenizer.convert_tokens_to_ids(token) for name, token in GLM.items()}
    tower = {"hidden_size": 64, "intermediate_size": 256, "out_hidden_size": TEXT_WIDTH, "image_size": TILE}
    return kind(**_placed(processor, tower, partial_rotary_factor=1.0, **text), **ids)


def _placed(processor: Any, tower: dict[str, Any], **text: Any) -> dict[str, Any]:
    """Settings of a model with positions along three axes; those of rotation go where rotation is set."""
    settings = {name: value for name, value in _text("", len(processor.tokenizer)).items() if name != "model_type"}
    rope = {name: text.pop(name) for name in ROPE if name in text}
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], **rope}
    vision = {
        "depth": 3,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        **tower,
    }
    return {"text_config": settings | text, "vision_config": vision, "tie_word_embeddings": False}


def _qwen_processor(kind: type[Any], videos: type[Any]) -> Any:
    tokenizer = _with_tokens({f"{name}_token": token for name, token in QWEN.items()})
    template = CHAT_TEMPLATE.replace("<image>", QWEN["vision_start"] + QWEN["image"] + QWEN["vision_end"])
    pixels = {"shortest_edge": 4 * CELL**2, "longest_edge": 300 * CELL**2}
    sizes = {"size": pixels, "patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
    return kind(Qwen2VLImageProcessor(**sizes), tokenizer, videos(**sizes), chat_template=template)


def _glm_processor() -> Any:
    tokenizer = _with_tokens({f"{name}_token": token for name, token in GLM.items()})
    template = CHAT_TEMPLATE.replace("<image>", GLM["image_start"] + GLM["image"] + GLM["image_end"])
    pixels = {"shortest_edge": 4 * CELL**2, "longest_edge": 2 * 300 * CELL**2}
    sizes = {"size": pixels, "patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
    videos = Glm4vVideoProcessor(**sizes)
    return T.Glm4vProcessor(Glm4vImageProcessor(**sizes), tokenizer, videos, chat_template=template)


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
