"""Methods that need more than features, told it by the long way: every prompt encoded alone."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from families import BATCH, Family, Media, is_video, is_visual
from reference import KeptPrompt, kept_prompts
from torch import Tensor

from gprune.attach.encoding import encoding_of
from gprune.families.table import FROM_TOWER
from gprune.pruners import Pruner, Selection, SetPruner
from gprune.pruners.base import Need
from gprune.tokens import View, VisualTokens


@dataclass
class Curious(SetPruner):
    """Needs all there is, keeps the first tokens, and remembers what it was told."""

    needs: ClassVar[tuple[Need, ...]] = FROM_TOWER

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        self.told = tokens
        return view.rows[:k]


class Told(Pruner):
    """A method that is given, image by image, the tokens with what it needs beside them."""

    def __init__(self, pruner: Pruner, tokens: Sequence[VisualTokens]) -> None:
        self.pruner, self.tokens, self.positions = pruner, iter(tokens), pruner.positions
        self.selections: list[Selection] = []

    def select(self, tokens: VisualTokens | Tensor) -> Selection:
        known = next(self.tokens)
        assert isinstance(tokens, VisualTokens)
        torch.testing.assert_close(known.features, tokens.features, rtol=0, atol=1e-5)
        self.selections.append(self.pruner.select(known))
        return self.selections[-1]

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        raise NotImplementedError


def encoder_output(model: Any, inputs: dict[str, Tensor], modality: str = "image") -> Any:
    """What the encoder of the model makes of the pixels."""
    encoder = getattr(model.base_model, f"get_{modality}_features")
    arguments = {name: inputs[name] for name in inspect.signature(encoder).parameters if name in inputs}
    return encoder(**arguments, return_dict=True)


def signals(output: Any, name: str) -> Tensor:
    """[N, ...]: what was read on the way, of all items."""
    return torch.cat(encoding_of(output).signals[name])


def known_tokens(
    family: Family,
    model: Any,
    pruner: Pruner,
    inputs: dict[str, Tensor],
    images: Sequence[Sequence[Media]] = BATCH,
) -> list[VisualTokens]:
    """The visual tokens of every image or video, with what the method needs."""
    known = []
    for row, media in enumerate(images):
        if not media:
            continue
        prompt = family.prompt_of(inputs, row, images)
        ids = prompt["input_ids"][0]
        question = model.get_input_embeddings()(ids[~is_visual(ids)])
        features = family.encode(model, prompt, [media])
        read: dict[str, list[Tensor]] = {}
        if set(FROM_TOWER) & set(pruner.needs):
            with Curious(1.0)(model):
                for video in (False, True):
                    own = [one for one in media if is_video(one) == video]
                    output = encoder_output(model, prompt, "video" if video else "image") if own else None
                    for name in FROM_TOWER if own else ():
                        counts = [family.layout(one)[0] for one in own]
                        values = family.shown_rows(signals(output, name), prompt if video else {})
                        read.setdefault(name, []).extend(values.split(counts))
        order = sorted(range(len(media)), key=lambda i: is_video(media[i]))  # images first, as they were read
        for i, (one, own_features) in enumerate(zip(media, features, strict=True)):
            tokens = family.tokens(own_features, one)
            told = {name: values[order.index(i)] for name, values in read.items()}
            known.append(replace(tokens, signals=told, questions=(question,)))
    return known


def told_prompts(
    family: Family,
    model: Any,
    pruner: Pruner,
    inputs: dict[str, Tensor],
    images: Sequence[Sequence[Media]] = BATCH,
) -> list[KeptPrompt]:
    """Every prompt of a batch after pruning, merged tokens in place."""
    told = Told(pruner, known_tokens(family, model, pruner, inputs, images))
    prompts = kept_prompts(family, model, told, inputs, images)
    selections = iter(told.selections)
    for prompt, media in zip(prompts, images, strict=True):
        merged = [next(selections).features for _ in media]
        if media and merged[0] is not None:
            prompt.embeddings[0, prompt.visual] = torch.cat([one for one in merged if one is not None])
    return prompts
