"""One selection for all images of a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..pruners.base import Pruner, Selection
from ..tokens import View, VisualTokens
from .layouts import Layout


@dataclass(frozen=True, eq=False)
class BatchSelection:
    """What a pruner kept of the images of a call.

    Args:
        kept: bool [N], per visual token of the call in prompt order, images repeated for beams included.
        everything: whether nothing was dropped.
        selection, sizes, views, ranked: as `report_images` takes them, each image once.
    """

    kept: Tensor
    everything: bool
    selection: Selection
    sizes: tuple[int, ...]
    views: tuple[View, ...]
    ranked: tuple[View, ...]


@torch.no_grad()
def select_images(pruner: Pruner, layout: Layout, model: PreTrainedModel, features: Sequence[Tensor]) -> BatchSelection:
    """Prune all images of a call at once.

    Args:
        features: floating [n, d] per image; the same tensor object given several times is scored once.

    Raises:
        ValueError: features are not finite (names the image) or not laid out as the model's family does.
    """
    once = {id(image): image for image in features}
    tokens = VisualTokens.cat([VisualTokens(f, layout(model, f), (f.shape[0],)) for f in once.values()])
    selection = pruner.select(tokens)
    mask = torch.zeros(tokens.features.shape[0], dtype=torch.bool, device=tokens.features.device)
    mask[selection.kept] = True
    masks = dict(zip(once, mask.split(tokens.sizes), strict=True))
    return BatchSelection(
        kept=torch.cat([masks[id(image)] for image in features]),
        everything=selection.kept.shape[0] == mask.shape[0],
        selection=selection,
        sizes=tokens.sizes,
        views=tokens.views,
        ranked=tokens.per_image().views if pruner.scope == "image" else tokens.views,
    )
