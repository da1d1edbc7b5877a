"""The matrix that integration tests cross: a tiny, randomly initialised model of the real class per family.

One entry a family. Layouts are worked out from the sizes of the images, never read from the model's features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as T
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from gprune.tokens import View, VisualTokens

IMAGE, VIDEO, VOCABULARY = 90, 91, 96
TILE, PATCH = 16, 4
PINPOINTS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]

Size = tuple[int, int]
"""(height, width) of an image in pixels."""

BATCH: tuple[tuple[Size, ...], ...] = (((20, 40),), ((40, 40), (30, 18)), ())
"""Images of each prompt: one, two, text only."""


@dataclass(frozen=True)
class Family:
    """A model family.

    Args:
        name: model_type.
        build: makes the config and the class of the tiny model.
        grid: (config, size) -> (rows, columns) of the high-resolution grid; None if an image is one view.
    """

    name: str
    build: Callable[[], tuple[Any, type[T.PreTrainedModel]]]
    grid: Callable[[Any, Size], Size] | None = None

    def model(self, attention: str = "sdpa") -> Any:
        """The model, shared between tests: leave it as it was."""
        return _model(self.name, attention)

    def layout(self, size: Size) -> tuple[int, list[tuple[list[int], Size]]]:
        """Number of visual tokens of an image, and the rows and the grid of each of its views."""
        side = TILE // PATCH
        views = [(list(range(side * side)), (side, side))]
        if self.grid is None:
            return side * side, views
        lines, columns = self.grid(self.build()[0], size)
        starts = [side * side + line * (columns + 1) for line in range(lines)]
        if lines * columns:
            views.append(([start + column for start in starts for column in range(columns)], (lines, columns)))
        return side * side + lines * (columns + 1), views

    def tokens(self, features: Tensor, size: Size) -> VisualTokens:
        """Features [n, d] of an image of that size as visual tokens."""
        count, views = self.layout(size)
        return VisualTokens(features, tuple(View(torch.tensor(rows), grid) for rows, grid in views), (count,))

    def inputs(
        self, images: Sequence[Sequence[Size]] = BATCH, *, side: str = "left", seed: int = 1
    ) -> dict[str, Tensor]:
        """What a processor would make of prompts with these images, padded on that side."""
        generator = torch.Generator().manual_seed(seed)

        def text(count: int) -> list[int]:
            return torch.randint(3, 88, (count,), generator=generator).tolist()

        prompts = []
        for number, sizes in enumerate(images):
            prompt = text(4 + number)
            for size in sizes:
                prompt += [IMAGE] * self.layout(size)[0] + text(2)
            prompts.append(prompt + text(5))
        length = max(map(len, prompts))
        ids = torch.zeros(len(prompts), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            place = slice(length - len(prompt), None) if side == "left" else slice(len(prompt))
            ids[row, place], mask[row, place] = torch.tensor(prompt), 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        sizes = [size for prompt in images for size in prompt]
        if sizes and self.grid is None:
            inputs["pixel_values"] = torch.randn(len(sizes), 3, TILE, TILE, generator=generator)
        elif sizes:
            pixels = torch.randn(len(sizes), 10, 3, TILE, TILE, generator=generator)
            inputs |= {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
        return inputs


def prompt_of(inputs: dict[str, Tensor], row: int, images: Sequence[Sequence[Size]] = BATCH) -> dict[str, Tensor]:
    """One prompt of a batch, without its padding."""
    valid = inputs["attention_mask"][row].bool()
    first = sum(map(len, images[:row]))
    own = slice(first, first + len(images[row]))
    prompt = {name: inputs[name][row : row + 1, valid] for name in ("input_ids", "attention_mask")}
    if images[row]:
        prompt |= {name: inputs[name][own] for name in ("pixel_values", "image_sizes") if name in inputs}
    return prompt


def _text(model_type: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }


def _vision(model_type: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": PATCH,
    }


def _clip_llama() -> dict[str, Any]:
    return {
        "vision_config": _vision("clip_vision_model"),
        "text_config": _text("llama"),
        "image_token_id": IMAGE,
    }


def _llava() -> tuple[Any, type[T.PreTrainedModel]]:
    return T.LlavaConfig(**_clip_llama(), image_seq_length=16), T.LlavaForConditionalGeneration


def _vipllava() -> tuple[Any, type[T.PreTrainedModel]]:
    config = T.VipLlavaConfig(**_clip_llama(), vision_feature_layers=[-1, -2])
    return config, T.VipLlavaForConditionalGeneration


def _llava_next() -> tuple[Any, type[T.PreTrainedModel]]:
    return T.LlavaNextConfig(**_clip_llama(), image_grid_pinpoints=PINPOINTS), T.LlavaNextForConditionalGeneration


def _llava_next_video() -> tuple[Any, type[T.PreTrainedModel]]:
    config = T.LlavaNextVideoConfig(**_clip_llama(), video_token_id=VIDEO, image_grid_pinpoints=PINPOINTS)
    return config, T.LlavaNextVideoForConditionalGeneration


def _llava_onevision() -> tuple[Any, type[T.PreTrainedModel]]:
    config = T.LlavaOnevisionConfig(
        vision_config={**_vision("siglip_vision_model"), "vision_use_head": False},
        text_config=_text("qwen2"),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=[*PINPOINTS, [48, 48]],
        vision_aspect_ratio="anyres_max_2",
    )
    return config, T.LlavaOnevisionForConditionalGeneration


def _unpadded(config: Any, size: Size) -> Size:
    """Tokens of the best resolution that an image of this size covers, after the padding is cut off."""
    height, width = size
    rows, columns = (pixels // PATCH for pixels in select_best_resolution(size, config.image_grid_pinpoints))
    if width / height > columns / rows:
        covered = int(round(height * columns / width, 7))
        return rows - 2 * ((rows - covered) // 2), columns
    covered = int(round(width * rows / height, 7))
    return rows, columns - 2 * ((columns - covered) // 2)


def _scaled_down(config: Any, size: Size) -> Size:
    """The same, scaled down if it is much more than the most tiles allowed."""
    rows, columns = _unpadded(config, size)
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_")) * (TILE // PATCH) ** 2
    ratio = math.sqrt(rows * columns / most)
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("llava", _llava),
        Family("vipllava", _vipllava),
        Family("llava_next", _llava_next, _unpadded),
        Family("llava_next_video", _llava_next_video, _unpadded),
        Family("llava_onevision", _llava_onevision, _scaled_down),
    )
}


@cache
def _model(name: str, attention: str) -> Any:
    config, kind = FAMILIES[name].build()
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)  # the default is so small that no mistake would show
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model
