"""One selection for all images, or all videos, of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .. import host
from ..errors import BadValue
from ..families.table import FAMILIES, FROM_TOWER, Family
from ..families.tiles import grouped, run_length, spans_of
from ..families.views import Item, Views
from ..host import Modality
from ..pruners.base import Method, Pruner, Selection
from ..tokens import Mask, View, VisualTokens
from .encoding import Encoding, encoding_of, prompt_order
from .support import fields_of
from .tower_narrowing import GONE
from .tower_reading import reader


class _Everything(Pruner):
    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        return Selection(torch.arange(tokens.features.shape[0], device=tokens.features.device))


EVERYTHING = _Everything(1.0)
"""Lets every token reach the LLM, for methods that act inside it."""


def selector_of(method: Method) -> Pruner:
    """What chooses the tokens that reach the LLM."""
    return next((part for part in method.parts if isinstance(part, Pruner)), EVERYTHING)


@dataclass(frozen=True, eq=False)
class Prompt:
    """The token ids of a call, and which of them are what.

    Args:
        ids: int64 [B, q].
        placeholders: of each modality, bool [B, q], where its visual tokens go.
        text: bool [B, q], where there is text.
        valid: bool [B, q], what the attention mask does not hide.
        embeddings: floating [B, q, d], where they were given in the place of ids.
    """

    ids: Tensor
    placeholders: dict[Modality, Tensor]
    text: Tensor
    valid: Tensor
    embeddings: Tensor | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, ids: Tensor, valid: Tensor, embeddings: Tensor | None = None) -> Prompt:
        """Of token ids int64 [B, q], of which those that are bool [B, q] are not hidden."""
        placeholders = FAMILIES[model.config.model_type].placeholders(model.config, ids)
        heard = ids == host.sound_token(model.config)
        text = valid & ~(placeholders["image"] | placeholders["video"] | heard)
        return cls(ids, placeholders, text, valid, embeddings)


@dataclass(frozen=True, eq=False)
class BatchSelection:
    """What a pruner kept of the images of a call.

    Args:
        order: of the encoder's items in the prompts, repeated for beams.
        kept: bool [N], per visual token of the items in this order.
        merged: floating [N, d], these tokens after others were merged into them; None: as they are.
        everything: whether nothing was dropped that is not hidden.
        whole: whether nothing was dropped.
        images: which image each group of visual tokens in the prompts is, repeated for beams.
        selection, sizes, views, ranked, per_layer, pair_cost: as `report_images` takes them, each image once.
    """

    order: list[int]
    kept: Tensor
    merged: Tensor | None
    everything: bool
    whole: bool
    images: list[int]
    selection: Selection
    sizes: tuple[int, ...]
    views: tuple[View, ...]
    ranked: tuple[View, ...]
    per_layer: tuple[tuple[int, ...], ...] | None = None
    pair_cost: float = 0.0


@dataclass(frozen=True, eq=False)
class Gathered:
    """The visual tokens of a call, each image once, and where it stands in the prompts.

    Args:
        tokens: as a method is given them.
        order: of the encoder's items in the prompts, repeated for beams.
        images: which image each group of visual tokens in the prompts is, repeated for beams.
        shown: bool [N], which of the tokens the attention mask does not hide; None: all.
    """

    tokens: VisualTokens
    order: list[int]
    images: list[int]
    shown: Tensor | None = None

    @property
    def present(self) -> Tensor | None:
        """bool [N], which of the tokens are neither hidden nor were left out before the tower; None: all."""
        gone = self.tokens.signals.get(GONE)
        if gone is None:
            return self.shown
        return ~gone if self.shown is None else self.shown & ~gone.to(self.shown.device)

    @property
    def given(self) -> VisualTokens:
        """The tokens that a method chooses from: those that are present."""
        return self.tokens if self.present is None else _only(self.tokens, self.present)

    def in_order(self, rows: Tensor) -> Tensor:
        """Values of the tokens, [N, ...], as they follow one another in the prompts."""
        own = rows.split(self.tokens.sizes)
        return torch.cat([own[image] for image in self.images])


@torch.no_grad()
def gather(
    selector: Pruner,
    family: Family,
    model: PreTrainedModel,
    modality: Modality,
    output: ModelOutput,
    prompt: Prompt,
    masks: Sequence[Mask | None] = (),
) -> Gathered:
    """The visual tokens of all images, or all videos, of a call, as `selector` would be given them.

    Args:
        output: of the encoder; images that `generate()` repeated for beams are gathered once.
        prompt: where they go.
        masks: of the images, in the order of the prompts.

    Raises:
        ValueError: there are more or fewer placeholders than visual tokens, or masks than images; features are not laid
            out as the model's family does; they were made elsewhere, and the method needs to know what their encoder
            saw.
        UnsupportedModel: the output lacks a field that gprune relies on.
    """
    host.check_encoded(output, modality, fields_of(model, family))
    placeholders = prompt.placeholders[modality]
    order = prompt_order(output, family.output, placeholders)
    encoding = encoding_of(output)
    _check_signals(selector, model, modality, encoding)
    items = _items(family, model, modality, encoding, order)
    if family.per_prompt:
        items = [tile for item in items for tile in _tiles(item, run_length(placeholders))]
    sizes = [len(item) for item in items]
    _check_count(modality, placeholders, sizes)
    tiled, asks = family.joins is not None and modality == "image", "question" in selector.needs
    # Where the items stand is only read off the device for those who must know.
    spans = spans_of(placeholders, sizes) if tiled or asks else []
    joins = family.joins(prompt.ids, spans) if family.joins is not None and tiled else [False] * len(items)
    indices = grouped(len(items), joins)
    groups = [[items[i] for i in group] for group in indices]

    views = family.video if modality == "video" else family.views
    assert views is not None
    images = {_key(group): group for group in groups}
    tokens = replace(VisualTokens.cat([_image(group, views) for group in images.values()]), masks=tuple(masks))
    if asks:
        rows = {_key([items[i] for i in group]): spans[group[0]][0] for group in indices}
        tokens = replace(tokens, questions=tuple(_question(model, prompt, rows[key]) for key in images))
    numbers = {key: number for number, key in enumerate(images)}
    places = [numbers[_key(group)] for group in groups]
    return Gathered(tokens, order, places, _shown(prompt.valid[placeholders], places, tokens.sizes))


@torch.no_grad()
def choose(selector: Pruner, gathered: Gathered) -> BatchSelection:
    """What a method keeps of the visual tokens of a call. Those that are hidden or gone stay so, in no budget.

    Raises:
        NonFiniteFeatures: features are NaN or Inf; names the image.
    """
    tokens, shown, present, given = gathered.tokens, gathered.shown, gathered.present, gathered.given
    selection = selector.select(given)
    if present is not None:
        selection = _over_all(selection, present)
    mask = torch.zeros(tokens.features.shape[0], dtype=torch.bool, device=tokens.features.device)
    mask[selection.kept] = True
    merged = None
    if selection.features is not None:
        merged = tokens.features.clone()
        merged[selection.kept] = selection.features
    return BatchSelection(
        order=gathered.order,
        kept=gathered.in_order(mask),
        merged=None if merged is None else gathered.in_order(merged),
        everything=selection.kept.shape[0] == (mask.shape[0] if shown is None else int(shown.sum())),
        whole=selection.kept.shape[0] == mask.shape[0],
        images=gathered.images,
        selection=selection,
        sizes=tokens.sizes,
        views=tokens.views,
        ranked=selector.ranked(given).views,
    )


def _shown(valid: Tensor, images: Sequence[int], sizes: Sequence[int]) -> Tensor | None:
    """Of what the mask shows of the prompts' visual tokens, bool [N'], each image once; None if it shows all."""
    if valid.all():
        return None
    parts = dict(reversed(list(zip(images, valid.split([sizes[image] for image in images]), strict=True))))
    return torch.cat([parts[image] for image in range(len(sizes))])


def _only(tokens: VisualTokens, shown: Tensor) -> VisualTokens:
    """The tokens that are True in bool [N]; a view of which some are missing has no grid."""
    shown = shown.to(tokens.features.device)
    places = shown.cumsum(0) - 1
    views = []
    for view in tokens.views:
        rows = view.rows[shown[view.rows]]
        known = view if len(rows) == len(view) else replace(view, grid=None, tiles=None)
        views.append(replace(known, rows=places[rows]))
    sizes = tuple(int(part.sum()) for part in shown.split(tokens.sizes))
    signals = {name: values[shown] for name, values in tokens.signals.items()}
    return replace(tokens, features=tokens.features[shown], views=tuple(views), sizes=sizes, signals=signals)


def _over_all(selection: Selection, shown: Tensor) -> Selection:
    """A selection of the tokens that are True in bool [N], as one of all of them."""
    rows = shown.to(selection.kept.device).nonzero().squeeze(1)
    scores = selection.scores
    if scores is not None:
        scores = scores.new_full((len(shown),), torch.nan).index_copy(0, rows, scores)
    return replace(selection, kept=rows[selection.kept], scores=scores)


def _items(
    family: Family, model: PreTrainedModel, modality: Modality, encoding: Encoding, order: Sequence[int]
) -> list[Item]:
    """The items that are not empty, as they follow one another in the prompts."""
    features = encoding.output[family.output]
    if family.project is not None:
        features = family.project(model, features)
    arguments = _per_item(encoding.arguments, len(features))
    marked = marked_rows(features, family.mark(model)) if family.mark is not None and modality == "image" else None
    return [
        Item(
            model,
            features[index],
            {name: value[index] for name, value in arguments.items()},
            (index, 0),
            {name: values[index] for name, values in encoding.signals.items()},
            () if marked is None else marked[index],
        )
        for index in order
        if len(features[index])  # where an item is all of a prompt, a prompt of text has an empty one
    ]


def _tiles(item: Item, length: int) -> list[Item]:
    """An item that is all tiles of a prompt, of so many tokens each, tile by tile."""
    signals = {name: values.split(length) for name, values in item.signals.items()}
    return [
        replace(
            item,
            features=tile,
            key=(item.key[0], number),
            signals={name: values[number] for name, values in signals.items()},
        )
        for number, tile in enumerate(item.features.split(length))
    ]


def _as_tensor(argument: tuple[str, Any]) -> tuple[str, Any]:
    """An argument of an encoder by name; numbers in a list as a tensor."""
    name, value = argument
    numbers = isinstance(value, (list, tuple)) and all(isinstance(each, int) for each in value)
    return name, torch.tensor(value) if numbers else value


def _per_item(arguments: Mapping[str, Any], count: int) -> dict[str, Sequence[Tensor]]:
    """Of an encoder's arguments those with a value for each of `count` items; read off the device at once."""
    found: dict[str, Sequence[Tensor]] = {}
    frames = arguments.get("num_frames_per_video")
    for name, value in map(_as_tensor, arguments.items()):
        if isinstance(value, Tensor) and value.ndim:
            value = value if value.is_floating_point() else value.cpu()
            if frames is not None and name != "num_frames_per_video":
                value = value.split(frames.tolist())
            if len(value) == count:
                found[name] = value
        elif isinstance(value, list) and len(value) == count:
            found[name] = value
    return found


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
        replace(view, rows=view.rows + start)
        for item, start in zip(group, starts, strict=False)
        for view in views(item)
    )
    features = torch.cat([item.features for item in group]) if len(group) > 1 else group[0].features
    signals = {name: torch.cat([item.signals[name] for item in group]) for name in group[0].signals}
    return VisualTokens(features, joined, (features.shape[0],), signals)


def _question(model: PreTrainedModel, prompt: Prompt, row: int) -> Tensor:
    """[q, d]: the LLM's input embeddings of the text of a prompt."""
    text = prompt.text[row]
    if prompt.embeddings is not None:
        return prompt.embeddings[row, text]
    return model.get_input_embeddings()(prompt.ids[row, text])


def _check_signals(pruner: Pruner, model: PreTrainedModel, modality: Modality, encoding: Encoding) -> None:
    if "frames" in pruner.needs and modality == "image":
        raise BadValue(
            f"{type(pruner).__name__} compares the frames of videos, and these are images; detach it for calls with "
            f"images, or use another method"
        )
    needed = set(FROM_TOWER) & set(pruner.needs)
    if needed <= encoding.signals.keys():
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
