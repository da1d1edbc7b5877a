"""What gprune must know of a family: model_type -> how its encoder lays out visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from packaging.version import Version
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from .. import host
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
        rope_3d: whether tokens are numbered by time, height and width.
        since: the first version of transformers whose forward takes fewer visual tokens than an image has.
        broken: the version of transformers in which the family does not work at all, with or without a pruner.
    """

    views: Views = frames
    joins: Joins | None = None
    video: Views | None = None
    tile: Callable[[PreTrainedModel], int] | None = None
    mark: Callable[[PreTrainedModel], Tensor] | None = None
    output: str = host.POOLED
    project: Callable[[PreTrainedModel, Tensor], Tensor] | None = None
    rope_3d: bool = False
    since: str = "5.19"
    broken: str = ""


def _shuffled_tile(model: PreTrainedModel) -> int:
    """Tokens of a tile of Idefics3 after its pixel shuffle."""
    vision = model.config.vision_config
    return int((vision.image_size // vision.patch_size // model.config.scale_factor) ** 2)


def _projector(model: PreTrainedModel, features: Tensor) -> Tensor:
    return cast(Module, model.multi_modal_projector)(features)


FLAT_CLIPS = host.installed() >= Version("5.20.2")
"""Whether LLaVA-NeXT-Video's features of a clip are [n, d], as everywhere; before, they were [frames, n, d]."""

ONE_VIEW = Layout()
TILED = Layout(joins=adjacent)
LINES = Layout(base_and_lines, mark=newline)
ROPE_3D = Layout(rope_3d=True)
ROPE_3D_WITH_VIDEO = Layout(video=frames, rope_3d=True)
TILES_PER_PROMPT = Layout(joins=overview_last, tile=_shuffled_tile)

LAYOUTS: dict[str, Layout] = {
    "aria": Layout(views=unordered),
    "aya_vision": Layout(joins=overview_last),
    "cohere2_vision": Layout(joins=partial(adjacent, gap=1)),
    "deepseek_vl": ONE_VIEW,
    "gemma3": ONE_VIEW,
    "gemma4": ONE_VIEW,
    "glm46v": ROPE_3D,
    "glm4v": ROPE_3D,
    "got_ocr2": TILED,
    "idefics3": TILES_PER_PROMPT,
    "internvl": TILED,
    "kimi_k25": ONE_VIEW,
    "lfm2_vl": Layout(joins=partial(adjacent, gap=1)),
    "llama4": Layout(joins=overview_last, output=host.UNPOOLED, project=_projector, broken="5.24.0"),
    "llava": ONE_VIEW,
    "llava_next": LINES,
    "llava_next_video": replace(LINES, video=frames if FLAT_CLIPS else None),
    "llava_onevision": replace(LINES, video=frames_and_newline),
    "mistral3": ONE_VIEW,
    "molmo2": Layout(two_resolutions),
    "paligemma": ONE_VIEW,
    "perception_lm": TILED,
    "qwen2_5_vl": ROPE_3D_WITH_VIDEO,
    "qwen2_vl": ROPE_3D_WITH_VIDEO,
    "qwen3_5": ROPE_3D_WITH_VIDEO,
    "qwen3_vl": ROPE_3D_WITH_VIDEO,
    "qwen3_vl_moe": ROPE_3D_WITH_VIDEO,
    "smolvlm": replace(TILES_PER_PROMPT, since="5.21"),
    "vipllava": ONE_VIEW,
}
