"""What a model that drops visual tokens inside its LLM must compute: stock layers, nothing shortened, only masks.

A token that left before a layer is one that nothing sees there any more. So the whole prompt goes through the stock
text model, without a cache, and hooks close the columns of what left in the masks of the layers to come.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from families import BATCH, Family, Media
from reference import KeptPrompt, encode, kept_prompts, kept_rows, text_logits
from torch import Tensor
from torch.nn.functional import cosine_similarity
from wordwise import pumer, sparsevlm

from gprune.pruners import InsideTokens, Pruner, Uniform

Choose = Callable[["Seen", int], "Tensor | dict[int, Tensor]"]
"""Which k of the candidates of an image stay: int64 [k], indices into them; or those with the weights, [n], of what
they become a sum of."""

ALL = Uniform(keep=1.0)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a layer of the stock model was given and made, over the columns of the prompt.

    Args:
        states: [n, d], the input of the layer to come.
        attention: [n], the last row of the attention of the layer before, mean over its heads.
        keys: [n, heads, d], of the layer before.
        change: [n], of the states, since the input of the layer before.
        candidates: int64, columns of the image that have not left.
        text: int64, columns of text.
        paid: [n, n], all rows of the attention of the layer before.
        embeddings: [n, d], the input of the first layer.
        whole: int64, columns of the image.
    """

    states: Tensor
    attention: Tensor
    keys: Tensor
    change: Tensor
    candidates: Tensor
    text: Tensor
    paid: Tensor
    embeddings: Tensor
    whole: Tensor


def most_attended(seen: Seen, k: int) -> Tensor:
    """FastV, PyramidDrop."""
    return seen.attention[seen.candidates].topk(k).indices


def most_changed(seen: Seen, k: int) -> Tensor:
    """V2Drop."""
    return seen.change[seen.candidates].topk(k).indices


def as_seen(seen: Seen) -> InsideTokens:
    """What a method is shown of it."""
    norms, states = seen.keys.flatten(1).norm(dim=1), seen.states.detach()
    return InsideTokens(
        states=states[seen.candidates],
        attention=seen.attention[seen.candidates],
        key_norms=norms[seen.candidates],
        change=seen.change[seen.candidates],
        text=states[seen.text],
        text_key_norms=norms[seen.text],
        text_attention=seen.paid[seen.text][:, seen.candidates],
        embeddings=seen.embeddings.detach()[seen.whole],
        text_embeddings=seen.embeddings.detach()[seen.text],
    )


def recycled(seen: Seen, k: int) -> dict[int, Tensor]:
    """SparseVLM, so many recycled that there are clusters of several."""
    return sparsevlm(as_seen(seen), k, 0.8, 0.3)


def matched(seen: Seen, k: int) -> dict[int, Tensor]:
    """PuMer."""
    return pumer(as_seen(seen), k)


def least_duplicate(seen: Seen, k: int, pivots: int = 4) -> Tensor:
    """DART, one token at a time."""
    norms = seen.keys.flatten(1).norm(dim=1)
    own = norms[seen.candidates].topk(min(pivots, k)).indices.tolist()
    text = seen.text[norms[seen.text].topk(min(pivots, len(seen.text))).indices].tolist()
    kept, rest = list(own), k - len(own)
    all_pivots = [int(seen.candidates[index]) for index in own] + text
    for number, pivot in enumerate(all_pivots):
        until = len(own) + rest * (number + 1) // len(all_pivots)
        while len(kept) < until:
            left = [index for index in range(len(seen.candidates)) if index not in kept]
            cosines = [cosine_similarity(seen.states[seen.candidates[i]], seen.states[pivot], 0) for i in left]
            kept.append(left[int(torch.stack(cosines).argmin())])
    return torch.tensor(kept)


@dataclass(eq=False)
class Inside:
    """A prompt and which of its columns have left at every layer.

    Args:
        model: with eager attention.
        prompt: as it reaches the LLM.
        sizes: visual tokens of each image of the prompt.
        counts: of each image, tokens that each layer sees.
        choose: the method.
        left: bool [n] per layer, of the first n columns; empty until a first pass has settled it.
        mixed: per layer, of columns that others were merged into, the columns and weights that they are a sum of.
    """

    model: Any
    prompt: KeptPrompt
    sizes: Sequence[int]
    counts: Sequence[Sequence[int]]
    choose: Choose
    left: list[Tensor] = field(default_factory=list)
    mixed: dict[int, dict[int, tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def followed_by(self, model: Any, token: Tensor) -> Inside:
        """The same with one more token."""
        return replace(self, prompt=self.prompt.followed_by(model, token))

    def logits(self) -> Tensor:
        """[n, vocabulary]."""
        layers = self.model.get_decoder().layers
        handles: list[Any] = []
        seen: dict[str, Tensor] = {}
        settled = bool(self.left)

        family = sys.modules[type(layers[0].self_attn).__module__]
        eager = family.eager_attention_forward

        def keys(module: Any, query: Tensor, key: Tensor, *others: Any, **settings: Any) -> Any:
            seen["keys"] = key[0].transpose(0, 1)
            return eager(module, query, key, *others, **settings)

        def attention(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            seen["paid"] = output[1][0].mean(0)

        def close(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            layer = list(layers).index(module)
            if not settled:
                states = args[0][0]
                seen["change"] = (states - seen.get("states", states)).norm(dim=-1)
                seen["states"] = states
                seen.setdefault("embeddings", states)
                before = self.left[-1] if layer else torch.zeros(len(self.prompt.ids), dtype=torch.bool)
                self.left.append(self._leaving(before, layer, states, seen))
            gone = self.left[layer]
            gone = torch.cat([gone, gone.new_zeros(len(self.prompt.ids) - len(gone))])
            mask = kwargs["attention_mask"].masked_fill(gone, torch.finfo(torch.float32).min)
            states = args[0].clone()
            for column, (of, weights) in self.mixed.get(layer, {}).items():
                states[0, column] = weights @ args[0][0, of]
            return (states, *args[1:]), {**kwargs, "attention_mask": mask}

        for layer in layers:
            handles.append(layer.register_forward_pre_hook(close, with_kwargs=True))
            handles.append(layer.self_attn.register_forward_hook(attention, with_kwargs=True))
        try:
            with patch.object(family, "eager_attention_forward", keys):
                return text_logits(self.model, self.prompt)
        finally:
            for handle in handles:
                handle.remove()

    def _leaving(self, gone: Tensor, layer: int, states: Tensor, seen: dict[str, Tensor]) -> Tensor:
        gone = gone.clone()
        images = self.prompt.visual.nonzero().squeeze(1).split(list(self.sizes))
        for columns, counts in zip(images, self.counts, strict=True):
            candidates = columns[~gone[columns]]
            if counts[layer] == len(candidates):
                continue
            gone[candidates] = True
            if counts[layer]:
                text = (~self.prompt.visual).nonzero().squeeze(1)
                own = Seen(
                    states=states,
                    attention=seen["paid"][-1],
                    keys=seen["keys"],
                    change=seen["change"],
                    candidates=candidates,
                    text=text,
                    paid=seen["paid"],
                    embeddings=seen["embeddings"],
                    whole=columns,
                )
                chosen = self.choose(own, counts[layer])
                if isinstance(chosen, dict):
                    columns_of = {int(candidates[index]): weights for index, weights in chosen.items()}
                    parts = {column: (candidates, weights) for column, weights in columns_of.items()}
                    self.mixed.setdefault(layer, {}).update(parts)
                    chosen = torch.tensor(list(chosen))
                gone[candidates[chosen]] = False
        return gone


def inside(
    family: Family,
    shares: Sequence[float],
    inputs: dict[str, Tensor],
    images: Sequence[Sequence[Media]] = BATCH,
    choose: Choose = most_attended,
    first: Pruner = ALL,
) -> list[Inside]:
    """Every prompt of a batch, after `first` has pruned it, one at a time; each layer sees a share of each image."""
    model = family.model("eager")
    features = encode_all(family, model, inputs, images)
    media = iter(features)
    result = []
    for prompt, shown in zip(kept_prompts(family, model, first, inputs, images), images, strict=True):
        sizes = [len(kept_rows(family, first, next(media), one)) for one in shown]
        counts = [[int(share * size + 1e-6) or int(share > 0) for share in shares] for size in sizes]
        result.append(Inside(model, prompt, sizes, counts, choose))
    return result


def encode_all(
    family: Family, model: Any, inputs: dict[str, Tensor], images: Sequence[Sequence[Media]]
) -> list[Tensor]:
    """The visual tokens of every image."""
    return encode(model, inputs, images) if any(images) else []


def greedy_inside(model: Any, prompt: Inside, steps: int) -> tuple[Tensor, Tensor]:
    """Logits [steps, vocabulary] and tokens [steps] of greedy decoding: everything anew for every token."""
    logits, tokens = [], []
    for _ in range(steps):
        logits.append(prompt.logits()[-1])
        tokens.append(logits[-1].argmax())
        prompt = prompt.followed_by(model, tokens[-1])
    return torch.stack(logits), torch.stack(tokens)
