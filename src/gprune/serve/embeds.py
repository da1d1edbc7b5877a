"""Pruned features for a vLLM without the plug-in."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from ..pruners import Pruner


@torch.no_grad()
def embed(pruner: Pruner, model: Any, processor: Any, images: Sequence[Image.Image]) -> list[Tensor]:
    """Encode pictures with transformers and prune them, for `multi_modal_data={"image": ...}` of stock vLLM.

    vLLM takes them with `enable_mm_embeds=True`, puts as many placeholders in the prompt as there are rows, and needs
    no plug-in and no vision tower. A method that needs the question does not get one.

    vLLM accepts only features of one length where it takes several together, of one prompt or of several, and its
    engine ends otherwise. So this warns when lengths differ: see "Without the plug-in" in docs/serving.md.

    Args:
        pruner: the method and its budget.
        model: of a family that can be pruned, with transformers.
        processor: its processor, with a chat template.
        images: pictures; each is encoded as the only one of its prompt.

    Returns:
        Per image floating [k, d], what the LLM is to read, in the model's dtype and on its device.

    Raises:
        UnsupportedModel: the pruner does not go on this model.
        ValueError: what `pruner.select` raises.
    """
    from ..attach import visual_tokens
    from ..prompt import build_inputs

    pruned = []
    for image in images:
        tokens = visual_tokens(pruner, model, build_inputs(model, processor, [([image], "")]))
        selection = pruner.select(tokens)
        features = tokens.features[selection.kept] if selection.features is None else selection.features
        pruned.append(features.to(model.dtype))
    if len(lengths := sorted(set(map(len, pruned)))) > 1:
        warnings.warn(
            f"the features of these pictures have different lengths ({', '.join(map(str, lengths))} rows); vLLM's "
            f"engine ends when it takes features of different lengths together: generate for one length after the "
            f"other, and put only pictures of one length into a prompt",
            stacklevel=3,  # the caller's line: torch.no_grad lies between
        )
    return pruned
