"""Which tokens of an image are ranked together: model_type -> the views of one item of encoder output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..tokens import View
from .newline import base_and_lines

Layout = Callable[[PreTrainedModel, Tensor], tuple[View, ...]]
"""(model, features [n, d] of one image) -> its views, rows counted within the image; other rows are fixed."""


def whole_image(model: PreTrainedModel, features: Tensor) -> tuple[View, ...]:
    """One view of all tokens; its grid is the vision tower's, if it has a place for every token."""
    config = model.config.vision_config
    side = config.image_size // config.patch_size
    rows = torch.arange(features.shape[0], device=features.device)
    return (View(rows, (side, side) if len(rows) == side * side else None),)


LAYOUTS: dict[str, Layout] = {
    "llava": whole_image,
    "vipllava": whole_image,
    "llava_next": base_and_lines,
    "llava_next_video": base_and_lines,
    "llava_onevision": base_and_lines,
}
