"""One selection for all images, or all videos, of a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .. import host
from ..host import Modality
from ..pruners.base import Pruner, Selection
from ..tokens import View, VisualTokens
from .encoder import Encoding, encoding_of, prompt_order
from .layouts import Layout, Views
from .signals import FROM_TOWER, reader
from .support import fields_of
from .tiles import grouped, spans_of
from .views import Item


@dataclass(frozen=True, eq=False)
class BatchSelection:
    """What a pruner kept of the images of a call.

    Args:
        order: of the encoder's items in the prompts, repeated for beams.
        kept: bool [N], per visual token of the items in this order.
        merged: floating [N, d], these tokens after others were merged into them; None: as they are.
        everything: whether nothing was dropped.
        images: which image each group of visual tokens in the prompts is, repeated for beams.
        selection, sizes, views, ranked, per_layer, pair_cost: as `report_images` takes them, each image once.
    """

    order: list[int]
    kept: Tensor
    merged: Tensor | None
    everything: bool
    images: list[int]
    selection: Selection
    sizes: tuple[int, ...]
    views: tuple[View, ...]
    ranked: tuple[View, ...]
    per_layer: tuple[tuple[int, ...], ...] | None = None
    pair_cost: float = 0.0


@torch.no_grad()
def select_visual(
    pruner: Pruner,
    layout: Layout,
    model: PreTrainedModel,
    modality: Modality,
    output: ModelOutput,
    ids: Tensor,
    placeholders: Tensor,
    text: Tensor,
) -> BatchSelection:
    """Prune all images, or all videos, of a call at once.

    Args:
        output: of the encoder; images that `generate()` repeated for beams are scored once.
        ids: int64 [B, q], the prompts.
        placeholders: bool [B, q], where the visual tokens go.
        text: bool [B, q], where there is text.

    Raises:
        ValueError: there are more or fewer placeholders than visual tokens; features are not finite (names the
            image) or not laid out as the model's family does; they were made elsewhere, and the
            method needs to know what their encoder saw.
    """
    host.check_encoded(output, modality, fields_of(model, layout))
    order = prompt_order(output, layout.output, placeholders)
    encoding = encoding_of(output)
    _check_beside(pruner, model, modality, encoding)
    items = _items(layout, model, modality, encoding, order)
    sizes = [len(item) for item in items]
    _check_count(modality, placeholders, sizes)
    tiled, asks = layout.joins is not None and modality == "image", "question" in pruner.needs
    # Where the items stand is only read off the device for those who must know.
    spans = spans_of(placeholders, sizes) if tiled or asks else []
    joins = layout.joins(ids, spans) if layout.joins is not None and tiled else [False] * len(items)
    indices = grouped(len(items), joins)
    groups = [[items[i] for i in group] for group in indices]

    views = layout.video if modality == "video" else layout.views
    assert views is not None
    images = {_key(group): group for group in groups}
    tokens = VisualTokens.cat([_image(group, views) for group in images.values()])
    if asks:
        rows = {_key([items[i] for i in group]): spans[group[0]][0] for group in indices}
        tokens = replace(tokens, questions=tuple(_question(model, ids, text, rows[key]) for key in images))
    selection = pruner.select(tokens)
    mask = torch.zeros(tokens.features.shape[0], dtype=torch.bool, device=tokens.features.device)
    mask[selection.kept] = True
    numbers = {key: number for number, key in enumerate(images)}
    merged = None
    if selection.features is not None:
        merged = tokens.features.clone()
        merged[selection.kept] = selection.features

    def in_order(rows: Tensor) -> Tensor:
        own = dict(zip(images, rows.split(tokens.sizes), strict=True))
        return torch.cat([own[_key(group)] for group in groups])

    return BatchSelection(
        order=order,
        kept=in_order(mask),
        merged=None if merged is None else in_order(merged),
        everything=selection.kept.shape[0] == mask.shape[0],
        images=[numbers[_key(group)] for group in groups],
        selection=selection,
        sizes=tokens.sizes,
        views=tokens.views,
        ranked=tokens.per_image().views if pruner.scope == "image" else tokens.views,
    )


def _items(
    layout: Layout, model: PreTrainedModel, modality: Modality, encoding: Encoding, order: Sequence[int]
) -> list[Item]:
    """The items, or their tiles, as they follow one another in the prompts."""
    features = encoding.output[layout.output]
    if layout.project is not None:
        features = layout.project(model, features)
    # Read off the device at once, not image by image.
    arguments = {
        name: value if value.is_floating_point() else value.cpu()
        for name, value in encoding.arguments.items()
        if isinstance(value, Tensor) and value.ndim and len(value) == len(features)
    }
    marked = marked_rows(features, layout.mark(model)) if layout.mark is not None and modality == "image" else None
    items = []
    for index in order:
        told = {name: value[index] for name, value in arguments.items()}
        tiles = [features[index]] if layout.tile is None else features[index].split(layout.tile(model))
        # Where an item is all of a prompt, a prompt of text has an empty one.
        read = {name: values[index].split([len(tile) for tile in tiles]) for name, values in encoding.beside.items()}
        items += [
            Item(
                model,
                tile,
                told,
                (index, number),
                {name: values[number] for name, values in read.items()},
                () if marked is None else marked[index],
            )
            for number, tile in enumerate(tiles)
            if len(tile)
        ]
    return items


def marked_rows(features: Sequence[Tensor] | Tensor, mark: Tensor) -> list[list[int]]:
    """Of each item, floating [n, d], the rows that equal the mark, [d]."""
    equal = torch.cat([item.eq(mark.to(item)).all(dim=-1) for item in features]).nonzero().squeeze(1).tolist()
    ends = pairwise(accumulate((len(item) for item in features), initial=0))
    return [[row - start for row in equal if start <= row < end] for start, end in ends]


def _key(group: Sequence[Item]) -> tuple[tuple[int, int], ...]:
    return tuple(item.key for item in group)


def _image(group: Sequence[Item], views: Views) -> VisualTokens:
    """An image from its items: tiles, or the only one."""
    starts = accumulate((len(item) for item in group), initial=0)
    joined = tuple(
        View(view.rows + start, view.grid) for item, start in zip(group, starts, strict=False) for view in views(item)
    )
    features = torch.cat([item.features for item in group]) if len(group) > 1 else group[0].features
    beside = {name: torch.cat([item.beside[name] for item in group]) for name in group[0].beside}
    return VisualTokens(features, joined, (features.shape[0],), beside)


def _question(model: PreTrainedModel, ids: Tensor, text: Tensor, row: int) -> Tensor:
    """[q, d]: the LLM's input embeddings of the text of a prompt."""
    return model.get_input_embeddings()(ids[row, text[row]])


def _check_beside(pruner: Pruner, model: PreTrainedModel, modality: Modality, encoding: Encoding) -> None:
    needed = set(FROM_TOWER) & set(pruner.needs)
    if needed <= encoding.beside.keys():
        return
    method, family = type(pruner).__name__, model.config.model_type
    if reader(pruner, model, modality)[1] is None:
        raise ValueError(
            f"{method} needs the {' and '.join(sorted(needed))} of the vision tower, which gprune cannot read for "
            f"{modality}s of {family}; detach it for calls with {modality}s, or use a method that needs only features"
        )
    raise ValueError(
        f"{method} needs the {' and '.join(sorted(needed))} of the vision tower, but these {modality} features were "
        f"encoded while it was not attached; pass the pixels, or encode while it is attached"
    )


def _check_count(modality: Modality, placeholders: Tensor, sizes: Sequence[int]) -> None:
    given, needed = int(placeholders.sum()), sum(sizes)
    if given != needed:
        raise ValueError(
            f"input_ids has {given} {modality} placeholders but the {modality}s of this call ({len(sizes)}) have "
            f"{needed} visual tokens; the numbers must be equal; pass input_ids and pixels as the processor made "
            f"them, without prefill_chunk_size, and when going on with a cache only what is new"
        )
