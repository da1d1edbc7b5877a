"""Prompts without a processor: the model takes them, and they are as the processor of the family would make them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from gprune import GPrune, Random
from gprune.evaluate.noise import build_prompts, process_prompts, random_model
from gprune.families.architectures import ARCHITECTURES, architecture
from gprune.scenes.model import load_embedded

SIZES = [(480, 640), (640, 200), (90, 70)]
"""(height, width); the last is smaller than a tile."""

NARROW = {"num_hidden_layers": 2, "intermediate_size": 16, "num_attention_heads": 2}


def shrunk(name: str) -> Any:
    """The architecture with two narrow layers; tiles, patches, merging and vocabulary as they are."""
    config: Any = architecture(name)
    narrow = {"depth": 2, "intermediate_size": 16, "num_heads": 2} if name.startswith("qwen") else NARROW
    config.vision_config.update({**narrow, "hidden_size": 8})
    if name.startswith("qwen"):
        config.vision_config.update({"out_hidden_size": 32, "fullatt_block_indexes": [1], "hidden_size": 16})
        config.text_config.rope_parameters["mrope_section"] = [4, 2, 2]
        config.text_config.layer_types = ["full_attention"] * 2
    config.text_config.update({**NARROW, "hidden_size": 32, "num_key_value_heads": 1, "head_dim": 16})
    return config


@pytest.fixture(scope="module", params=ARCHITECTURES)
def net(request: pytest.FixtureRequest) -> Any:
    return random_model(shrunk(request.param), torch.float32, "cpu")


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_the_model_takes_them_pruned_and_unpruned(net: Any, size: tuple[int, int]) -> None:
    prompts = build_prompts(net.config, size, text_tokens=60, count=2)
    ids = prompts["input_ids"]
    visual = (ids == net.config.image_token_id).sum(1).tolist()
    assert len(visual) == 2 and ids.shape[1] == visual[0] + 60 == visual[1] + 60
    assert (ids[:, -1] != net.config.image_token_id).all()
    net(**prompts, logits_to_keep=1)  # refuses any other number of placeholders than it has features
    with Random(keep=0.5)(net) as run:
        net(**prompts, logits_to_keep=1)
    assert [image.n_before for image in run.images] == visual  # so all tiles are of one image
    assert all(image.n_after < image.n_before for image in run.images)


def test_tiles_and_grids_are_those_of_the_processors() -> None:
    for size in SIZES:
        picture = Image.fromarray(np.zeros((*size, 3), np.uint8))
        config = architecture("llava-next-8b")
        expected = LlavaNextImageProcessorPil(
            size={"shortest_edge": 336},
            crop_size={"height": 336, "width": 336},
            image_grid_pinpoints=config.image_grid_pinpoints,
        )(picture, return_tensors="pt")
        found = build_prompts(config, size, 60)
        assert found["pixel_values"].shape == expected["pixel_values"].shape
        assert found["image_sizes"].tolist() == expected["image_sizes"].tolist()
        qwen = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12845056})
        expected = qwen(picture, return_tensors="pt")
        found = build_prompts(architecture("qwen2.5-vl-7b"), size, 60)
        assert found["pixel_values"].shape == expected["pixel_values"].shape
        assert found["image_grid_thw"].tolist() == expected["image_grid_thw"].tolist()
        smol = Idefics3ImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
        expected = smol([picture], return_tensors="pt")
        found = build_prompts(architecture("smolvlm-256m"), size, 60)
        assert found["pixel_values"].shape == expected["pixel_values"].shape


@pytest.mark.parametrize(
    ("name", "visual"),
    [
        ("llava-next-8b", 2340),
        ("llava-next-0.5b", 1817),
        ("llava-1.5-7b", 576),
        ("qwen2.5-vl-7b", 391),
        ("smolvlm-256m", 13 * 64),
    ],
)
def test_visual_tokens_of_a_photo(name: str, visual: int) -> None:
    config: Any = architecture(name)
    ids = build_prompts(config, (480, 640), 75)["input_ids"]
    assert int((ids == config.image_token_id).sum()) == visual


def test_too_little_text_for_the_tags_of_the_tiles() -> None:
    config = architecture("smolvlm-256m")
    tags = 12 * 2 + 3 + 2 + 1 + 1  # of the tiles, after their rows, before the whole image and after it
    assert build_prompts(config, (480, 640), tags + 1)["input_ids"].shape == (1, 13 * 64 + tags + 1)
    with pytest.raises(ValueError, match=f"text_tokens={tags} is too few: .* image of 640x480 .* least {tags + 1}"):
        build_prompts(config, (480, 640), tags)


def test_an_unknown_family() -> None:
    with pytest.raises(ValueError, match="model_type 'clip_vision_model'; known are llava, llava_next"):
        build_prompts(architecture("llava-next-8b").vision_config, (480, 640), 75)


def test_prompts_of_a_processor_are_filled_up() -> None:
    model, processor = load_embedded()
    short = process_prompts(model, processor, (48, 64), 10, 2)
    long = process_prompts(model, processor, (48, 64), 30, 2)
    assert long["input_ids"].shape[1] == short["input_ids"].shape[1] + 20
    assert torch.equal(long["input_ids"][:, : short["input_ids"].shape[1]], short["input_ids"])
    assert torch.equal(long["attention_mask"], torch.ones_like(long["input_ids"]))
    assert torch.equal(long["pixel_values"], short["pixel_values"])
    assert (long["input_ids"] != model.config.image_token_id).sum(1).tolist() == [30, 30]
    with GPrune(keep=0.5)(model), torch.no_grad():
        assert model(**long).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"text_tokens=2 is too few: a prompt of llava_next with an image of 64x48"):
        process_prompts(model, processor, (48, 64), 2)
