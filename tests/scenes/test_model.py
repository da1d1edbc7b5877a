"""The parts of the model in the package fit each other: tokenizer, processor, and the features of the model."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gprune.families.tiling import tiling
from gprune.scenes.model import IMAGE, PATCH, TILE, build_config, build_model, build_processor, build_tokenizer
from gprune.scenes.vocabulary import CANVASES

ODD_SIZES = ((1, 1), (3, 3), (1, 40), (40, 1), (3, 100), (512, 512), (451, 300), (4000, 40), (40, 4000))


@cache
def parts() -> tuple[Any, Any]:
    torch.manual_seed(0)
    return build_model().eval(), build_processor()


@pytest.mark.parametrize("size", [*CANVASES, *ODD_SIZES])
def test_there_are_as_many_placeholders_as_features(size: tuple[int, int]) -> None:
    model, processor = parts()
    inputs = processor(images=Image.new("RGB", size), text="<image>what is the background?", return_tensors="pt")
    with torch.no_grad():
        [features] = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    layout = tiling(build_config(), size[::-1])
    placeholders = int((inputs["input_ids"] == IMAGE).sum())
    assert placeholders == len(features) == sum(layout.views) + layout.newlines


@pytest.mark.parametrize("size", [*CANVASES, *ODD_SIZES])
def test_a_picture_of_one_colour_reaches_the_model_as_that_colour(size: tuple[int, int]) -> None:
    """Whatever its shape: 1 and 3 pixels are also numbers of channels."""
    _, processor = parts()
    color = (220, 30, 120)
    pixels = processor.image_processor(Image.new("RGB", size, color), return_tensors="pt")["pixel_values"][0]
    base = (pixels[0] * 0.5 + 0.5) * 255
    expected = torch.tensor(color, dtype=torch.float32)[:, None, None].expand_as(base)
    torch.testing.assert_close(base, expected, atol=1.01, rtol=0)


def test_a_picture_of_a_canvas_size_is_cut_into_tiles_unscaled() -> None:
    _, processor = parts()
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (128, 192, 3), dtype=np.uint8)[:64]
    pixels = processor.image_processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0]
    seen = ((pixels[1:] * 0.5 + 0.5) * 255).round().numpy()
    for i, tile in enumerate(seen):
        np.testing.assert_array_equal(tile.transpose(1, 2, 0), picture[:, i * TILE : (i + 1) * TILE])


def test_several_pictures_of_several_sizes_in_a_prompt() -> None:
    model, processor = parts()
    pictures = [Image.new("RGB", size) for size in ((128, 128), (64, 192), (30, 40))]
    inputs = processor(images=pictures, text="<image><image><image>what?", return_tensors="pt")
    with torch.no_grad():
        features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    assert int((inputs["input_ids"] == IMAGE).sum()) == sum(len(each) for each in features)


def test_chat_template_ends_where_the_answer_begins() -> None:
    _, processor = parts()
    content = [{"type": "image"}, {"type": "text", "text": "what is the background?"}]
    chat = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert prompt == "<bos><user><image>what is the background?<assistant>"
    chat.append({"role": "assistant", "content": "sky"})
    assert processor.apply_chat_template(chat) == "<bos><user><image>what is the background?<assistant>sky<eos>"


@pytest.mark.parametrize("text", ["Café, déjà vu!", "naïve", "WHAT is 3+4?", "x = (a[0] - b) * 2;"])
def test_any_latin_text_is_spelled_without_accents_or_capitals(text: str) -> None:
    tokenizer = build_tokenizer()
    plain = text.lower().translate(str.maketrans("éàï", "eai"))
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == plain


def test_a_patch_is_a_token() -> None:
    config = build_config()
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (TILE, PATCH)
    assert config.text_config.vocab_size == len(build_tokenizer())
