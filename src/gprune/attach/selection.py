"""One selection for all images, or all videos, of a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..pruners.base import Pruner, Selection
from ..tokens import View, VisualTokens
from .encoder import Encoding, Modality, encoding_of, prompt_order
from .layouts import Layout, Views
from .tiles import grouped, spans_of
from .views import Item


@dataclass(frozen=True, eq=False)
class BatchSelection:
    """What a pruner kept of the images of a call.

    Args:
        order: of the encoder's items in the prompts, repeated for beams.
        kept: bool [N], per visual token of the items in this order.
        everything: whether nothing was dropped.
        selection, sizes, views, ranked: as `report_images` takes them, each image once.
    """

    order: list[int]
    kept: Tensor
    everything: bool
    selection: Selection
    sizes: tuple[int, ...]
    views: tuple[View, ...]
    ranked: tuple[View, ...]


@torch.no_grad()
def select_visual(
    pruner: Pruner,
    layout: Layout,
    model: PreTrainedModel,
    modality: Modality,
    output: ModelOutput,
    ids: Tensor,
    placeholders: Tensor,
) -> BatchSelection:
    """Prune all images, or all videos, of a call at once.

    Args:
        output: of the encoder; images that `generate()` repeated for beams are scored once.
        ids: int64 [B, q], the prompts.
        placeholders: bool [B, q], where the visual tokens go.

    Raises:
        ValueError: there are more or fewer placeholders than visual tokens; features are not finite (names the
            image) or not laid out as the model's family does.
    """
    order = prompt_order(output, layout.output, placeholders)
    items = _items(layout, model, encoding_of(output), order)
    sizes = [len(item) for item in items]
    _check_count(modality, placeholders, sizes)
    joins = None if layout.joins is None or modality == "video" else layout.joins(ids, spans_of(placeholders, sizes))
    groups = [[items[i] for i in group] for group in grouped(len(items), joins or [False] * len(items))]

    views = layout.video if modality == "video" else layout.views
    assert views is not None
    images = {_key(group): group for group in groups}
    tokens = VisualTokens.cat([_image(group, views) for group in images.values()])
    selection = pruner.select(tokens)
    mask = torch.zeros(tokens.features.shape[0], dtype=torch.bool, device=tokens.features.device)
    mask[selection.kept] = True
    masks = dict(zip(images, mask.split(tokens.sizes), strict=True))
    return BatchSelection(
        order=order,
        kept=torch.cat([masks[_key(group)] for group in groups]),
        everything=selection.kept.shape[0] == mask.shape[0],
        selection=selection,
        sizes=tokens.sizes,
        views=tokens.views,
        ranked=tokens.per_image().views if pruner.scope == "image" else tokens.views,
    )


def _items(layout: Layout, model: PreTrainedModel, encoding: Encoding, order: Sequence[int]) -> list[Item]:
    """The items, or their tiles, as they follow one another in the prompts."""
    features = encoding.output[layout.output]
    if layout.project is not None:
        features = layout.project(model, features)
    items = []
    for index in order:
        told = {
            name: value[index]
            for name, value in encoding.arguments.items()
            if isinstance(value, Tensor) and value.ndim and len(value) == len(features)
        }
        tiles = [features[index]] if layout.tile is None else features[index].split(layout.tile(model))
        # Where an item is all of a prompt, a prompt of text has an empty one.
        items += [Item(model, tile, told, (index, number)) for number, tile in enumerate(tiles) if len(tile)]
    return items


def _key(group: Sequence[Item]) -> tuple[tuple[int, int], ...]:
    return tuple(item.key for item in group)


def _image(group: Sequence[Item], views: Views) -> VisualTokens:
    """An image from its items: tiles, or the only one."""
    starts = accumulate((len(item) for item in group), initial=0)
    joined = tuple(
        View(view.rows + start, view.grid) for item, start in zip(group, starts, strict=False) for view in views(item)
    )
    features = torch.cat([item.features for item in group]) if len(group) > 1 else group[0].features
    return VisualTokens(features, joined, (features.shape[0],))


def _check_count(modality: Modality, placeholders: Tensor, sizes: Sequence[int]) -> None:
    given, needed = int(placeholders.sum()), sum(sizes)
    if given != needed:
        raise ValueError(
            f"input_ids has {given} {modality} placeholders but the {modality}s of this call ({len(sizes)}) have "
            f"{needed} visual tokens; the numbers must be equal; pass input_ids and pixels as the processor made "
            f"them, without prefill_chunk_size, and when going on with a cache only what is new"
        )
