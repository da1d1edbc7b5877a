"""The layout of LLaVA-NeXT and relatives: [base view][high-resolution lines that end in a newline row]."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..tokens import View
from .views import Item


def newline(model: PreTrainedModel) -> Tensor:
    """The learned row that ends every line: floating [d]."""
    return cast(Tensor, model.base_model.image_newline)


def base_and_lines(item: Item) -> tuple[View, ...]:
    """Read the views of one image back from its packed features.

    The size of the image is no longer known when `generate()` calls forward, but the model puts the same
    learned newline row at the end of every line, unchanged: where it stands tells the shape. Newline rows are
    fixed. An image without high-resolution lines (extreme aspect ratio, one of several OneVision images) is a
    base view alone.

    Args:
        item: one image of a model with a square vision tower; the newline rows are marked.

    Returns:
        The base view and, where there are lines, the view of the high-resolution grid.

    Raises:
        ValueError: the features are not laid out this way.
    """
    model, newlines = item.model, item.marked
    config = model.config.vision_config
    side = config.image_size // config.patch_size
    base, count = side * side, len(item)
    width = newlines[0] - base + 1 if newlines else 0
    lines = (count - base) // width if width > 0 else 0
    if newlines != [base + (line + 1) * width - 1 for line in range(lines)] or count != base + lines * width:
        raise ValueError(
            f"an image has {count} visual tokens with newline rows at {newlines}; {model.config.model_type} "
            f"makes {base} base tokens, then lines of equal length that each end in the newline row; call "
            f"generate() without prefill_chunk_size, and pass the features of the encoder unchanged"
        )
    rows = torch.arange(count, device=item.features.device)
    views = (View(rows[:base], (side, side)),)
    if width < 2:
        return views
    grid = rows[base:].view(lines, width)[:, :-1]
    return (*views, View(grid.reshape(-1), (lines, width - 1)))
