"""The small LLaVA-NeXT that ships in the package: its architecture, tokenizer and processor, and how to load it."""

from __future__ import annotations

import string
from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from .. import host
from .vocabulary import BACKGROUNDS, COLORS, SHAPES

SPECIAL = ("<pad>", "<bos>", "<eos>", "<image>", "<user>", "<assistant>", "<unk>")
PAD, BOS, EOS, IMAGE, USER, ASSISTANT, UNK = range(len(SPECIAL))
PATCH, TILE = 8, 64  # pixels
PINPOINTS = [[64, 128], [128, 64], [128, 128], [64, 192], [192, 64]]  # height, width
_WORDS = [
    "what",
    "where",
    "which",
    "how",
    "many",
    "is",
    "are",
    "the",
    "there",
    "a",
    "in",
    "text",
    "color",
    "shape",
    "shapes",
    "picture",
    "describe",
    "background",
    "bar",
    "chart",
    "tallest",
    "shortest",
    "written",
    "yes",
    "no",
    "top",
    "middle",
    "bottom",
    "left",
    "center",
    "right",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def embedded_path() -> Path:
    """The folder of the checkpoint inside the installed package, laid out like one of the model hub's."""
    return Path(str(files("gprune.scenes") / "checkpoint"))


def load_embedded(
    device: str | torch.device = "cpu",
) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """Load the embedded model in float32, and its processor.

    Raises:
        FileNotFoundError: the installed package lacks the checkpoint.
    """
    path = embedded_path()
    if not (path / "model.safetensors").exists():
        raise FileNotFoundError(
            f"no embedded model in {path.name!r} beside gprune.scenes: the installation is incomplete; reinstall gprune"
        )
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    return model.eval().to(device), AutoProcessor.from_pretrained(path)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words for the language of the scenes, single characters for everything else."""
    words = [*_WORDS, *COLORS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *BACKGROUNDS]
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*SPECIAL, "▁", *(f"▁{word}" for word in words), *characters]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    # With an empty continuation prefix, WordPiece takes the longest known piece: a whole word, or "▁" and characters.
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="", max_input_chars_per_word=200)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"[^▁\w]"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": "<image>",
            "user_token": "<user>",
            "assistant_token": "<assistant>",
        },
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaNextProcessor:
    """The stock LLaVA-NeXT processor, with tiles of 64 pixels."""
    image_processor = host.image_processor("LlavaNext")(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_resize=True,
        do_center_crop=True,
        do_rescale=True,
        do_normalize=True,
        do_convert_rgb=True,
        do_pad=True,
    )
    return LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_config() -> LlavaNextConfig:
    """CLIP-style ViT (5 x 128) + MLP projector + Llama-style language model (5 x 160): 2.5 M parameters."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=5,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def build_model() -> LlavaNextForConditionalGeneration:
    """The architecture with random weights."""
    return LlavaNextForConditionalGeneration(build_config())
