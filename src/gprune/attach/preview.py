"""Visual tokens without an answer: the vision tower runs, the LLM does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import host
from ..pruners.base import Method, Pruner, Selection
from ..tokens import VisualTokens
from .choosing import Prompt, gather
from .encoding import encode_call, unrecorded
from .report import ImageReport, report_images
from .run import attach


@torch.no_grad()
def visual_tokens(method: Method, model: Any, inputs: Mapping[str, Tensor]) -> VisualTokens:
    """The visual tokens of the images of a call, as `method` would be given them.

    What they hold follows from the method's `needs` and, where it works in the vision tower, from its settings; for all
    methods that are alike in these, one call does.

    Args:
        method: says what must be known of the tokens; it is attached while the images are encoded.
        model: of a family that can be pruned.
        inputs: of the model, as the processor makes them, with at least one image.

    Returns:
        The images in the order of the prompts.

    Raises:
        UnsupportedModel: the method does not go on this model.
        ValueError: there is no image, or what `gather` raises.
    """
    return encoded(method, model, inputs)[0]


@torch.no_grad()
def encoded(method: Method, model: Any, inputs: Mapping[str, Tensor]) -> tuple[VisualTokens, dict[str, Any]]:
    """`visual_tokens`, and the call with its images encoded, so that it can be made several times.

    Returns:
        The images in the order of the prompts, and inputs of the model without pixels.

    Raises:
        UnsupportedModel, ValueError: see `visual_tokens`.
    """
    if inputs.get("pixel_values") is None:
        raise ValueError("the inputs have no pixel_values; accepted are inputs with an image; give the processor one")
    with attach(method, model) as run:
        call, outputs = encode_call(run.model, dict(inputs), ["image"])
        ids = inputs["input_ids"]
        valid = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        prompt = Prompt.of(run.model, ids, valid)
        tokens = gather(run.selector, run.family, run.model, "image", outputs["image"], prompt).given
    return tokens, {**call, host.ENCODED: {"image": unrecorded(outputs["image"])}}


def reports_of(pruner: Pruner, tokens: VisualTokens, selection: Selection) -> list[ImageReport]:
    """What `pruner.select(tokens)` kept of each image, as `run.images` tells it of a call."""
    return report_images(selection, tokens.sizes, tokens.views, pruner.ranked(tokens).views)
