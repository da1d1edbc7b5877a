"""Vision towers that are given some of their patches, by the long way: all of them, hidden by a mask."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from families import FAMILIES, Family, Media, Size
from families.grids import MERGE, PATCH
from reference import KeptPrompt, kept_prompts
from torch import Tensor
from torch.nn import Module
from transformers import AttentionInterface

from gprune import PixelDedup, Pruner, Selection, View, VisualTokens
from gprune.families.table import FAMILIES as TABLE

PACKED: dict[str, Family] = {name: FAMILIES[name] for name in FAMILIES if TABLE[name].packed}
"""The families before whose towers patches can be left out."""

IMAGES: tuple[tuple[Size, ...], ...] = (((40, 56),), ((40, 40), (30, 18)), ())
"""Images of each prompt: one, two, text only."""

AREA, COLOURS = MERGE**2, 3
BACKEND = "hiding"


class Hiding:
    """An attention backend in which nobody sees the patches that are True in `hidden`, in the order of the tower."""

    def __init__(self) -> None:
        self.begin(torch.zeros(0, dtype=torch.bool))

    def begin(self, hidden: Tensor, *_: Any) -> None:
        """The tower is called, and some of its patches, bool [P], are hidden."""
        self.hidden = hidden
        self.starts: dict[Module, int] = {}

    def __call__(
        self, layer: Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, scaling: float, **__: Any
    ) -> tuple[Tensor, None]:
        """What a chunk of patches, [1, heads, n, d] each, makes of those of them that can be seen."""
        start = self.starts.get(layer, 0)
        self.starts[layer] = start + query.shape[2]
        logits = query @ key.mT * scaling
        # Where a whole chunk is hidden, what it makes of itself is hidden from all others.
        logits = logits.masked_fill(self.hidden[start : self.starts[layer]], torch.finfo(logits.dtype).min)
        return (logits.softmax(-1) @ value).transpose(1, 2), None


HIDING = Hiding()
AttentionInterface.register(BACKEND, HIDING)


def page(family: Family, seed: int = 0) -> dict[str, Tensor]:
    """Inputs whose pictures are half of one colour, and of what repeats itself or does not; several seeds differ."""
    inputs, generator = family.inputs(IMAGES), torch.Generator().manual_seed(seed)
    pixels = inputs["pixel_values"].unflatten(0, (-1, AREA))
    for image, groups in enumerate(pixels.split(sizes_of(inputs))):
        for i, kind in enumerate(torch.randint(0, 4, (len(groups),), generator=generator).tolist()):
            if kind < 2:
                groups[i] = 1.5 + image
            elif kind == 2 and i:
                groups[i] = groups[i - 1]
    return inputs


def sizes_of(inputs: dict[str, Tensor]) -> list[int]:
    """Visual tokens of each picture."""
    return (inputs["image_grid_thw"].prod(1) // AREA).tolist()


def left_of(method: PixelDedup, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Of each picture, bool [n], the visual tokens that stay."""
    if "pixel_values" not in inputs:
        return []
    pictures = inputs["pixel_values"].unflatten(0, (-1, AREA)).split(sizes_of(inputs))
    # The values of a patch are those of one colour after the other.
    return [
        method.choose(torch.stack([torch.cat([patch.view(COLOURS, -1) for patch in group], dim=1) for group in groups]))
        for groups in pictures
    ]


class After(Pruner):
    """What a second method keeps of the tokens that are not NaN; all of them without one."""

    def __init__(self, second: Pruner | None = None) -> None:
        self.second, self.positions = second, "original" if second is None else second.positions

    def select(self, tokens: VisualTokens | Tensor) -> Selection:
        assert isinstance(tokens, VisualTokens)
        rows = (~tokens.features.isnan().any(-1)).nonzero().squeeze(1)
        if self.second is None:
            return Selection(rows)
        view = View(torch.arange(len(rows)))
        return Selection(rows[self.second.select(VisualTokens(tokens.features[rows], (view,), (len(rows),))).kept])

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        raise NotImplementedError


def narrowed_prompts(
    family: Family, model: Any, method: PixelDedup, inputs: dict[str, Tensor], second: Pruner | None = None
) -> list[KeptPrompt]:
    """Every prompt of a batch with what is left of its visual tokens."""
    stock = copy.deepcopy(model)
    stock.set_attn_implementation({"vision_config": BACKEND})
    tower = stock.base_model.visual

    def hiding(prompt: dict[str, Tensor]) -> Any:
        return tower.register_forward_pre_hook(partial(HIDING.begin, _hidden(family, method, prompt)))

    def encode(model: Any, prompt: dict[str, Tensor], images: Sequence[Sequence[Media]]) -> list[Tensor]:
        with hiding(prompt):
            features = family.encode(stock, prompt, images)
        left, nan = left_of(method, prompt), torch.tensor(torch.nan)
        return [own.where(keep[:, None], nan) for own, keep in zip(features, left, strict=True)]

    def deepstack(model: Any, prompt: dict[str, Tensor], images: Sequence[Sequence[Media]]) -> list[Tensor]:
        with hiding(prompt):
            return family.deepstack(stock, prompt, images)

    other = copy.copy(family)
    vars(other).update(encode=encode, deepstack=deepstack)
    return kept_prompts(other, model, After(second), inputs, IMAGES)


def _hidden(family: Family, method: PixelDedup, prompt: dict[str, Tensor]) -> Tensor:
    """bool [P]: patches that are hidden, in the order of the tower."""
    hidden = [torch.zeros(0, dtype=torch.bool)]
    for keep, (_, height, width) in zip(left_of(method, prompt), prompt.get("image_grid_thw", ()), strict=True):
        columns = int(width) // MERGE
        order = list(range(int(height) // MERGE * columns))
        if family.name == "qwen2_5_vl":
            side = family.settings["vision_config"]["window_size"] // PATCH // MERGE
            order.sort(key=lambda token: (token // columns // side, token % columns // side))
        hidden += [~keep[order]]
    return torch.cat(hidden).repeat_interleave(AREA)
