"""Drops visual tokens between the layers of the LLM: hooks on the layers of the decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from .. import host
from ..errors import UnfitSettings, UnsupportedModel
from ..families.table import FAMILIES, families_of, missing
from ..host import Modality
from ..pruners.base import Method
from ..pruners.decoder import ALL_BUT_ROUNDING, DecoderMerger, DecoderPruner, InsideTokens, standing
from .encoding import EncoderOutputs
from .llm_attention import last_row, rows_paid, with_look
from .llm_columns import Left, narrow_mask, read_layers, take, write_layers


def check_decoder(pruner: DecoderPruner, model: PreTrainedModel) -> None:
    """Raise unless tokens can be dropped inside this model's LLM, as this pruner would.

    Raises:
        UnsupportedModel: the LLM, or its attention, does not let tokens go; says why.
        UnfitSettings: the settings of the pruner do not fit the LLM.
    """
    method, family = type(pruner).__name__, model.config.model_type
    decoder = host.decoder_of(model)
    if reason := uneven_attention(decoder.config) or missing(pruner, family):
        raise UnsupportedModel(
            f"{method} drops tokens between layers of the LLM, which gprune cannot do in {family}: {reason}; use a "
            f"method that acts before the LLM, such as GPrune, or one of {', '.join(families_of(pruner))}"
        )
    if (backend := host.backend_of(decoder)) not in host.BACKENDS:
        raise UnsupportedModel(
            f"{method} gives every layer a mask of its own, which {backend} attention does not "
            f"take; accepted are {' and '.join(host.BACKENDS)}; load the model with attn_implementation='sdpa'"
        )
    host.check_layers(model)
    schedule = pruner.schedule(len(host.layers_of(decoder)))
    first = next((layer for layer, share in enumerate(schedule) if share < ALL_BUT_ROUNDING), len(schedule))
    levels = host.deepstack_levels(model.config)
    if first < levels:
        remedy = f"layer must be >= {levels}" if hasattr(pruner, "layer") else f"none can be dropped before {levels}"
        raise UnfitSettings(
            f"{method}: {family} injects deepstack features into layers 0-{levels - 1}, so {remedy}; these settings "
            f"drop tokens before layer {first}"
        )


def uneven_attention(config: Any) -> str | None:
    """Why a token that leaves an LLM of this config is not the same as one that is masked in it; None if it is."""
    kinds = sorted(host.layer_kinds(config) - {"full_attention"})
    if kinds:
        return f"its LLM has layers of {' and '.join(kinds)}, for which gaps in the sequence are not the same as masks"
    if (window := host.window_of(config)) is not None:
        return f"its layers see a sliding window of {window} tokens, counted over the whole sequence"
    return None


@dataclass(eq=False)
class Image:
    """An image of a call.

    Args:
        modality: of the call that it came by.
        copies: (row, int64 [n] columns) of its visual tokens, several for beams, which drop alike.
        counts: tokens that each layer sees.
        kept: bool [n].
        per_layer: tokens that the layers so far have seen.
    """

    modality: Modality
    copies: list[tuple[int, Tensor]]
    counts: list[int]
    kept: Tensor
    per_layer: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Call:
    """A call of the model under way.

    Args:
        pruner: that drops its tokens; None where it only goes on.
        outputs: of the encoder, with what was kept before the LLM.
        start: columns in the whole cache before it.
        valid: bool [B, q], which of its own columns hold a token.
        prompt: bool [B, q], which hold a token of the prompt, as opposed to drafted tokens.
        layers: what is left in layers of the cache.
        images: that it carries.
        left: of its own columns; None as long as all are.
        attention, key_norms: float32 [B, q], seen in the layer before; 0 where nothing is left.
        text_attention: float32 [B, q, t], what the text of each prompt, aligned to the right, paid there; if wanted.
        given: floating [B, n, d], the input of the layer before, of the columns that are left; if wanted.
        embeddings: floating [B, q, d], the input of the first layer; if wanted.
        written: what will be left in the cache.
        masks: those that layers share.
    """

    pruner: DecoderPruner | None
    outputs: EncoderOutputs | None
    start: int
    valid: Tensor
    prompt: Tensor
    layers: dict[int, Left]
    images: list[Image]
    left: Left | None = None
    attention: Tensor | None = None
    key_norms: Tensor | None = None
    text_attention: Tensor | None = None
    given: Tensor | None = None
    embeddings: Tensor | None = None
    written: dict[int, Left] = field(default_factory=dict)
    masks: dict[tuple[int, int, int], tuple[Any, ...]] = field(default_factory=dict)

    @property
    def text(self) -> Tensor:
        """bool [B, q], which of its columns hold text of the prompt."""
        text = self.prompt.clone()
        for image in self.images:
            for row, columns in image.copies:
                text[row, columns] = False
        return text

    @property
    def last(self) -> Tensor:
        """int64 [B]: the last token of each prompt, among the columns that are left."""
        prompt = self.among_left(self.prompt)
        return prompt.shape[1] - 1 - prompt.long().flip(1).argmax(dim=1)

    def among_left(self, columns: Tensor) -> Tensor:
        """bool [B, q] -> bool [B, n], of the columns that are left."""
        return columns if self.left is None else columns.gather(1, self.left.index) & self.left.valid


_CALL: ContextVar[Call | None] = ContextVar("gprune_call", default=None)
"""The call of this thread that is under way."""


class LayerHooks:
    """What drops tokens between the layers of a model's LLM, in calls of a run whose method acts there.

    Args:
        model: whose LLM it is.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._decoder = host.decoder_of(model)
        self._backend = host.backend_of(self._decoder)

    def looks(self) -> list[tuple[Module, dict[str, Any]]]:
        """The attention modules whose computation must be seen, each with the attributes that show it."""
        attentions = [host.attention_in(layer) for layer in host.layers_of(self._decoder)[:-1]]
        return [(attention, with_look(attention, partial(_look, index))) for index, attention in enumerate(attentions)]

    def put_on(self) -> list[RemovableHandle]:
        """Put the hooks on the model and its layers; returns their handles."""
        layers = host.layers_of(self._decoder)
        return [
            *(
                handle
                for module in (self.model, self.model.base_model)
                for handle in (
                    module.register_forward_pre_hook(self._begin, with_kwargs=True),
                    module.register_forward_hook(self._end, always_call=True),
                )
            ),
            *(
                layer.register_forward_pre_hook(partial(self._narrow, index), with_kwargs=True)
                for index, layer in enumerate(layers)
            ),
            layers[-1].register_forward_hook(self._widen, with_kwargs=True),
        ]

    @torch.compiler.disable
    def _begin(self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if kwargs is None:  # taken off by another thread at this moment, so that nobody needs it here
            return
        if model is not self.model and _CALL.get() is not None:
            return  # the base model, called by the model
        _CALL.set(None)
        if args:
            kwargs = {**dict(zip(host.forward_arguments(model), args, strict=False)), **kwargs}
        given = kwargs.get(host.ENCODED)
        outputs = given if isinstance(given, EncoderOutputs) else None
        ids, cache = kwargs.get("input_ids"), host.cache_of(kwargs)
        cached = host.columns_of(cache)
        layers = read_layers(cache, cached)
        pruner = None if outputs is None or outputs.run is None else decoder_pruner(outputs.run.method)
        if pruner is None and not layers:
            return
        embeddings = kwargs.get("inputs_embeds")
        shape = (ids if ids is not None else cast(Tensor, embeddings)).shape[:2]
        device = (ids if ids is not None else cast(Tensor, embeddings)).device
        mask = kwargs.get("attention_mask")
        valid = torch.ones(shape, dtype=torch.bool, device=device)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            valid = mask[:, -shape[1] :].to(device, torch.bool)
        images: list[Image] = []
        if pruner is not None and outputs is not None and outputs.ids is not None:
            shown = outputs.ids.masked_fill(~valid, -1)
            images = [image for modality in outputs.chosen for image in self._images(pruner, outputs, modality, shown)]
        self._check_call(pruner, kwargs, images, cache)
        _CALL.set(Call(pruner, outputs, cached, valid, valid & _asked(kwargs, images, valid), layers, images))

    def _images(
        self, pruner: DecoderPruner, outputs: EncoderOutputs, modality: Modality, ids: Tensor
    ) -> Iterator[Image]:
        batch = outputs.chosen[modality]
        places = FAMILIES[self.model.config.model_type].placeholders(self.model.config, ids)[modality].nonzero()
        sizes = [int(kept.sum()) for kept in batch.kept.split([batch.sizes[image] for image in batch.images])]
        copies: dict[int, list[tuple[int, Tensor]]] = {}
        for image, own in zip(batch.images, places.split(sizes), strict=True):
            copies.setdefault(image, []).append((int(own[0, 0]) if len(own) else 0, own[:, 1]))
        layers, pairs = len(host.layers_of(self._decoder)), pair_cost(self._decoder.config)
        for places_of_one in copies.values():
            own = places_of_one[0][1]
            counts = pruner.counts(len(own), layers, pairs * len(own))
            yield Image(modality, places_of_one, counts, torch.ones_like(own, dtype=torch.bool))

    def _check_call(self, pruner: DecoderPruner | None, call: dict[str, Any], images: list[Image], cache: Any) -> None:
        method = "a method inside the LLM" if pruner is None else type(pruner).__name__
        if (backend := host.backend_of(self._decoder)) != self._backend:
            raise ValueError(
                f"the LLM's attention is {backend!r} but was {self._backend!r} when {method} "
                f"was attached; set it before, then attach"
            )
        if foreign := host.uneven_layers(cache):
            raise ValueError(
                f"{method} leaves later layers with a shorter KV cache, but this cache has layers of kind "
                f"{', '.join(sorted(foreign))}, all of one length; accepted is a DynamicCache; leave out "
                f"cache_implementation, or prune before the LLM"
            )
        if all(image.counts[-1] == len(image.kept) for image in images):
            return
        if host.recomputes(self._decoder):
            raise ValueError(
                f"{method} cannot drop tokens in layers that are computed again for gradient checkpointing; call "
                f"model.gradient_checkpointing_disable(), or prune before the LLM"
            )
        labels = call.get("labels")
        if labels is not None and any(
            (labels[row, (columns + 1).clamp(max=labels.shape[1] - 1)] != -100).any()
            for image in images
            for row, columns in image.copies
        ):
            raise ValueError(
                f"labels ask for a token that follows a visual token, which {method} may have dropped before the last "
                f"layer; accepted is -100 there; mask visual tokens and the token after each image out of the labels"
            )

    def _end(self, model: PreTrainedModel, args: Any, output: Any) -> None:
        _CALL.set(None)

    def _narrow(
        self, index: int, layer: Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = _CALL.get()
        if call is None or kwargs is None:
            return None
        states = args[0]
        if any(image.counts[index] < int(image.kept.sum()) for image in call.images):
            states = self._drop(call, index, states)
        if call.pruner is not None and call.pruner.compares:
            call.given = states
        if call.pruner is not None and call.pruner.reads and index == 0:
            call.embeddings = states
        for image in call.images:
            image.per_layer.append(int(image.kept.sum()))
        cached, new = call.layers.get(index), call.left
        if cached is None and new is None:
            return None
        narrowed = {**kwargs, "attention_mask": self._mask(call, kwargs.get("attention_mask"), cached, new, states)}
        if new is None:
            return (states, *args[1:]), narrowed
        rope = kwargs[host.ROPE]
        narrow = partial(take, index=new.index, batch=-3, dim=-2)
        narrowed[host.ROPE] = narrow(rope) if isinstance(rope, Tensor) else tuple(map(narrow, rope))
        if kwargs.get("position_ids") is not None:
            narrowed["position_ids"] = take(kwargs["position_ids"], new.index, batch=-2, dim=-1)
        if kwargs.get(host.EXPERT_TYPES) is not None:
            narrowed[host.EXPERT_TYPES] = take(kwargs[host.EXPERT_TYPES], new.index, batch=-2, dim=-1)
        whole = cached or Left.all(len(new.index), call.start, new.index.device)
        call.written[index] = whole.then(call.start, new)
        return (states, *args[1:]), narrowed

    def _mask(self, call: Call, mask: Tensor | None, cached: Left | None, new: Left | None, states: Tensor) -> Any:
        key = id(mask), id(cached), id(new)
        if key not in call.masks:
            batch, device = len(states), call.valid.device
            whole = cached or Left.all(batch, call.start, device)
            own = new or Left.all(batch, call.valid.shape[1], device)
            narrowed = narrow_mask(mask, whole, own, call.start, states.device)
            call.masks[key] = narrowed, mask, cached, new  # kept alive, so that no other object takes its id
        return call.masks[key][0]

    @torch.no_grad()
    def _choose(self, call: Call, image: Image, k: int, states: Tensor, change: Tensor | None) -> Tensor | None:
        """Have an image keep k tokens of those left; where they are merged, says which stands for each of those."""
        if k >= int(image.kept.sum()):
            return None
        image.kept = image.kept.clone()
        places, stands = image.kept.nonzero().squeeze(1), None
        if k:
            tokens, pruner = self._inside(call, image, states.detach(), change), call.pruner
            assert pruner is not None
            if isinstance(pruner, DecoderMerger):
                stands = pruner.stands(tokens, k)
            chosen = pruner.choose(tokens, k) if stands is None else standing(stands)
            if len(chosen) != k or len(chosen.unique()) != k:
                raise ValueError(
                    f"{type(pruner).__name__}.choose returned {len(chosen)} indices of {len(tokens)} tokens; "
                    f"accepted are exactly k={k}, all different"
                )
            places = places[torch.ones_like(places, dtype=torch.bool).index_fill(0, chosen.to(places.device), False)]
        image.kept[places] = False
        return stands

    @staticmethod
    def _inside(call: Call, image: Image, states: Tensor, change: Tensor | None) -> InsideTokens:
        row, columns = image.copies[0]

        def of(values: Tensor | None, which: Tensor) -> Tensor:
            if values is None:
                return states.new_zeros(0)
            return values[row, which.to(values.device)].to(states.device)

        left, text = columns[image.kept], call.text[row].nonzero().squeeze(1)
        paid = of(call.text_attention, left)
        return InsideTokens(
            states=of(states, left),
            attention=of(call.attention, left),
            key_norms=of(call.key_norms, left),
            change=of(change, left),
            text=of(states, text),
            text_key_norms=of(call.key_norms, text),
            text_attention=paid[:, paid.shape[1] - len(text) :].T if paid.ndim == 2 else paid,
            embeddings=of(call.embeddings, columns),
            text_embeddings=of(call.embeddings, text),
        )

    def _drop(self, call: Call, index: int, states: Tensor) -> Tensor:
        """Drop what a layer is not to see: hidden states [B, n, d] -> [B, fewer, d]."""
        change = None
        if call.given is not None:
            change = (states.detach().float() - call.given.detach().to(states.device).float()).norm(dim=-1)
        if call.left is None:
            whole = states
        else:
            whole = call.left.spread(states)
            change = None if change is None else call.left.spread(change)
        kept, merged = call.valid.clone(), []
        for image in call.images:
            before = image.kept
            stands = self._choose(call, image, image.counts[index], whole, change)
            for row, columns in image.copies:
                kept[row, columns] = image.kept
                if stands is not None:
                    merged.append((row, columns[before], columns[image.kept], stands))
        call.left = Left.of(kept)
        return take(_merged(call.pruner, whole, merged), call.left.index, -3, -2)

    def _widen(self, layer: Module, args: Any, kwargs: Any, output: Tensor | None = None) -> Tensor | None:
        call = _CALL.get()
        if call is None or output is None:
            return None
        self._report(call)
        cache = host.cache_of(kwargs)
        if call.written and cache is not None:
            write_layers(cache, {**call.layers, **call.written})
        return None if call.left is None else call.left.spread(output)

    def _report(self, call: Call) -> None:
        outputs = call.outputs
        if call.pruner is None or outputs is None or outputs.run is None:
            return
        chosen = {}
        for modality, batch in outputs.chosen.items():
            images = [image for image in call.images if image.modality == modality]
            left = torch.cat([image.kept for image in images]).to(batch.selection.kept.device)
            chosen[modality] = replace(
                batch,
                selection=replace(batch.selection, kept=batch.selection.kept[left]),
                per_layer=tuple(tuple(image.per_layer) for image in images),
                pair_cost=pair_cost(self._decoder.config),
            )
        outputs.run.report(chosen)


def decoder_pruner(method: Method) -> DecoderPruner | None:
    """The part of a method that acts inside the LLM."""
    return next((part for part in method.parts if isinstance(part, DecoderPruner)), None)


def _merged(pruner: DecoderPruner | None, states: Tensor, merged: list[tuple[int, Tensor, Tensor, Tensor]]) -> Tensor:
    """Hidden states [B, q, d], of which some columns of a row were merged into others, as `stands` says."""
    if not merged:
        return states
    assert isinstance(pruner, DecoderMerger)
    device = states.device
    rows = torch.cat([torch.full_like(kept, row) for row, _, kept, _ in merged]).to(device)
    columns = torch.cat([kept for _, _, kept, _ in merged]).to(device)
    values = [pruner.merged(states[row, before.to(device)], stands) for row, before, _, stands in merged]
    return states.index_put((rows, columns), torch.cat(values))


def _look(index: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> None:
    """Note what a layer attends to, where the next one drops tokens by it."""
    call = _CALL.get()
    if call is None or call.pruner is None or not call.pruner.looks:
        return
    if all(image.counts[index + 1] >= image.counts[index] for image in call.images):
        return
    width = query.shape[2]
    seen = [row[:, -width:] for row in last_row(query, key, mask, scaling, call.last)]
    call.attention, call.key_norms = seen if call.left is None else map(call.left.spread, seen)
    if call.pruner.reads:
        text = Left.of(call.among_left(call.text)).index
        paid = rows_paid(query, key, mask, scaling, text)[..., -width:].mT
        call.text_attention = paid if call.left is None else call.left.spread(paid)


def _asked(call: dict[str, Any], images: list[Image], valid: Tensor) -> Tensor:
    """bool [B, q]: up to the first column whose logits are asked for, unless visual tokens follow it.

    Assisted decoding drafts tokens after the prompt, and asks for the logits of the last token of the prompt on.
    """
    wanted = call.get(host.LOGITS)
    length = valid.shape[1]
    first = length - max(wanted, 1) if isinstance(wanted, int) else length - 1
    if any((columns >= first).any() for image in images for _, columns in image.copies):
        first = length - 1
    return torch.arange(length, device=valid.device).expand_as(valid) <= first


def pair_cost(config: Any) -> float:
    """FLOPs of attention between two tokens, over the FLOPs of one token's matrix products in a layer.

    Those of a LLaMA layer of this config's sizes, with the active experts where there are several.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or hidden // heads)
    groups = width * (getattr(config, "num_key_value_heads", None) or heads) // heads
    active = getattr(config, "num_experts_per_tok", None) or getattr(config, "moe_topk", None) or 1
    inner = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    if not isinstance(inner, int):  # of experts for text, then of those for images
        inner = max(inner)
    return 4 * width / (2 * (2 * hidden * width + 2 * hidden * groups + 3 * hidden * inner * active))
