"""What gprune must know of a family: model_type -> how its encoder lays out visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import transformers
from packaging.version import Version
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from ..tokens import View
from .newline import base_and_lines, newline
from .tiles import Joins, adjacent, overview_last
from .views import Item, frames, frames_and_newline, two_resolutions, unordered

Views = Callable[[Item], tuple[View, ...]]
"""An item of an encoder's output -> its views, rows counted within the item; rows in no view are fixed."""


@dataclass(frozen=True)
class Layout:
    """How a family lays out visual tokens; as it stands, for families where an item is an image and one view.

    Args:
        views: of an item of the image encoder's output.
        joins: which neighbouring items are tiles of one image; None: each item is an image.
        video: the views of an item of the video encoder's output; None: videos cannot be pruned.
        tile: (model) -> tokens per tile, where the encoder returns all tiles of a prompt as one item.
        mark: (model) -> the learned row, [d], whose copies among an item's features tell how it is laid out.
        output: the field of the encoder's output that holds the features.
        project: (model, features [..., d]) -> the features as the LLM receives them, where `output` is not that.
        since: the first version of transformers whose forward takes fewer visual tokens than an image has.
    """

    views: Views = frames
    joins: Joins | None = None
    video: Views | None = None
    tile: Callable[[PreTrainedModel], int] | None = None
    mark: Callable[[PreTrainedModel], Tensor] | None = None
    output: str = "pooler_output"
    project: Callable[[PreTrainedModel, Tensor], Tensor] | None = None
    since: str = "5.19"


def _shuffled_tile(model: PreTrainedModel) -> int:
    """Tokens of a tile of Idefics3 after its pixel shuffle."""
    vision = model.config.vision_config
    return int((vision.image_size // vision.patch_size // model.config.scale_factor) ** 2)


def _projector(model: PreTrainedModel, features: Tensor) -> Tensor:
    return cast(Module, model.multi_modal_projector)(features)


FLAT_CLIPS = Version(transformers.__version__) >= Version("5.20.2")
"""Whether LLaVA-NeXT-Video's features of a clip are [n, d], as everywhere; before, they were [frames, n, d]."""

ONE_VIEW = Layout()
TILED = Layout(joins=adjacent)
LINES = Layout(base_and_lines, mark=newline)
WITH_VIDEO = Layout(video=frames)
TILES_PER_PROMPT = Layout(joins=overview_last, tile=_shuffled_tile)

LAYOUTS: dict[str, Layout] = {
    "aria": Layout(views=unordered),
    "aya_vision": Layout(joins=overview_last),
    "cohere2_vision": Layout(joins=partial(adjacent, gap=1)),
    "deepseek_vl": ONE_VIEW,
    "gemma3": ONE_VIEW,
    "gemma4": ONE_VIEW,
    "glm46v": ONE_VIEW,
    "glm4v": ONE_VIEW,
    "got_ocr2": TILED,
    "idefics3": TILES_PER_PROMPT,
    "internvl": TILED,
    "kimi_k25": ONE_VIEW,
    "lfm2_vl": Layout(joins=partial(adjacent, gap=1)),
    "llama4": Layout(joins=overview_last, output="last_hidden_state", project=_projector),
    "llava": ONE_VIEW,
    "llava_next": LINES,
    "llava_next_video": replace(LINES, video=frames if FLAT_CLIPS else None),
    "llava_onevision": replace(LINES, video=frames_and_newline),
    "mistral3": ONE_VIEW,
    "molmo2": Layout(two_resolutions),
    "paligemma": ONE_VIEW,
    "perception_lm": TILED,
    "qwen2_5_vl": WITH_VIDEO,
    "qwen2_vl": WITH_VIDEO,
    "qwen3_5": WITH_VIDEO,
    "qwen3_vl": WITH_VIDEO,
    "qwen3_vl_moe": WITH_VIDEO,
    "smolvlm": replace(TILES_PER_PROMPT, since="5.21"),
    "vipllava": ONE_VIEW,
}
