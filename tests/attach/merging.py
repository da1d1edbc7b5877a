"""Vision towers that merge tokens, by the long way: one tile at a time, by the parts of the stock layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from bipartite import merge_once, merge_to
from decoding import present
from families import BATCH, FAMILIES, Family, Media, Size
from families.newline import SIDE, LlavaNext
from families.parts import VIPLLAVA_LAYERS
from reference import KeptPrompt, kept_prompts
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from gprune.families.table import FAMILIES as TABLE
from gprune.pruners import Pruner, Selection
from gprune.pruners.base import Positions
from gprune.tokens import VisualTokens, kept_count

LAYERS = 5
"""Of the vision towers."""


def deeper(family: Family, **settings: Any) -> Family:
    """The family with more layers in its vision tower."""
    tower = {**family.settings["vision_config"], "num_hidden_layers": LAYERS}
    return replace(family, settings={**family.settings, "vision_config": tower, **settings})


MERGING: dict[str, Family] = {
    name: deeper(FAMILIES[name])
    for name in present("llava", "llava_next", "llava_next_video", "paligemma", "deepseek_vl", "video_llava")
} | {"vipllava": deeper(FAMILIES["vipllava"], **{VIPLLAVA_LAYERS: -2})}
"""The families in whose towers tokens can be merged."""

DEPTH = {"paligemma": LAYERS, "deepseek_vl": LAYERS}
"""Layers whose output the projector is given; else it is that of the last but one."""


Tile = Callable[..., tuple[Tensor, list[int]]]
"""(tower, pixels [3, H, W], keep, depth) -> [k, d], the patches of one tile that are left, and the places of each."""


class Left(Pruner):
    """Keeps the tokens that are not NaN."""

    def select(self, tokens: VisualTokens | Tensor) -> Selection:
        assert isinstance(tokens, VisualTokens)
        return Selection((~tokens.features.isnan().any(-1)).nonzero().squeeze(1))

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        raise NotImplementedError


def merged_prompts(
    family: Family,
    model: Any,
    keep: float,
    inputs: dict[str, Tensor],
    images: Sequence[Sequence[Media]] = BATCH,
    *,
    where: str = "vision",
    tile: Tile | None = None,
    positions: Positions = "original",
    dtype: torch.dtype = torch.float64,
) -> list[KeptPrompt]:
    """Every prompt of a batch with what is left of its visual tokens."""
    wide = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)

    def encode(model: Any, prompt: dict[str, Tensor], images: Sequence[Sequence[Media]]) -> list[Tensor]:
        if where == "tokens":
            stock = family.encode(model, prompt, images)
            media = [one for prompt in images for one in prompt]
            return [merged_tokens(family, each, one, keep) for each, one in zip(stock, media, strict=True)]
        own = partial(tile or merged_tile, keep=keep)
        return [each.float() for prompt_media in images for each in _images(family, wide, prompt, prompt_media, own)]

    other = copy.copy(family)
    vars(other)["encode"] = encode
    return kept_prompts(other, model, Left(positions=positions), inputs, images)


def merged_tokens(family: Family, features: Tensor, media: Media, keep: float) -> Tensor:
    """[n, d]: the tokens of an image after rounds of merging within its views, NaN where one was merged away."""
    tokens = family.tokens(features, media)
    result = torch.full_like(features, torch.nan)
    result[tokens.fixed] = features[tokens.fixed]
    counts = kept_count([len(view) for view in tokens.views], keep)
    for view, k in zip(tokens.views, counts, strict=True):
        rows, means = merge_to(features[view.rows], k)
        result[view.rows[rows]] = means
    return result


def merged_tile(tower: Any, pixels: Tensor, keep: float, depth: int) -> tuple[Tensor, list[int]]:
    """[k, d], the patches of one tile [3, H, W] that are left after `depth` layers, and the places of each."""
    class_token = hasattr(tower.embeddings, "class_embedding")
    hidden = tower.embeddings(pixels[None])
    hidden = (tower.pre_layrnorm(hidden) if class_token else hidden)[0]
    patches = len(hidden) - class_token
    places, sizes = list(range(-class_token, patches)), hidden.new_ones(len(hidden))
    for number, layer in enumerate(tower.encoder.layers[:depth]):
        attention, heads = layer.self_attn, layer.self_attn.num_heads
        normed = layer.layer_norm1(hidden)
        queries, keys, values = (
            projection(normed).unflatten(-1, (heads, -1)).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        logits = queries @ keys.mT / keys.shape[-1] ** 0.5 + sizes.log()
        seen = (logits.softmax(-1) @ values).transpose(0, 1).flatten(1)
        hidden = hidden + attention.out_proj(seen)

        merges = len(hidden) - class_token - _counts(patches, kept_count(patches, keep), depth)[number]
        parts = merge_once(keys.mean(0), merges, class_token)
        hidden = torch.stack([(sizes[own, None] * hidden[own]).sum(0) / sizes[own].sum() for own in parts])
        sizes = torch.stack([sizes[own].sum() for own in parts])
        places = [places[own[0]] for own in parts]
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden[int(class_token) :], places[int(class_token) :]


def evolved_tile(tower: Any, pixels: Tensor, keep: float, depth: int) -> tuple[Tensor, list[int]]:
    """[k, d], the informative patches of one tile [3, H, W] after `depth` layers, and the places of each."""
    first = int(hasattr(tower.embeddings, "class_embedding"))
    hidden = tower.embeddings(pixels[None])
    hidden = (tower.pre_layrnorm(hidden) if first else hidden)[0]
    patches = len(hidden) - first
    k, paid = kept_count(patches, keep), [0.0] * patches
    slow = list(range(patches))
    for number, layer in enumerate(tower.encoder.layers[:depth]):
        evolving = number >= max(1, round(len(tower.encoder.layers) / 3)) and k < patches
        slow = sorted(sorted(range(patches), key=lambda i: -paid[i])[:k]) if evolving else list(range(patches))
        fast = [i for i in range(patches) if i not in slow]
        given = [hidden[:first], *(hidden[first + i][None] for i in slow)]
        if fast:
            total = sum(paid[i] for i in fast)
            given.append(sum(paid[i] / total * hidden[first + i] for i in fast)[None])
        states = torch.cat(given)
        normed = layer.layer_norm1(states)
        attention, heads = layer.self_attn, layer.self_attn.num_heads
        queries, keys, values = (
            projection(normed).unflatten(-1, (heads, -1)).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        weights = (queries @ keys.mT / keys.shape[-1] ** 0.5).softmax(-1)
        made = states + attention.out_proj((weights @ values).transpose(0, 1).flatten(1))
        made = made + layer.mlp(layer.layer_norm2(made))
        received = weights.mean(0)[0] if first else weights.mean((0, 1))
        update = made[-1] - states[-1]
        own = [made[0]] * first
        for i in range(patches):
            if i in fast:
                own.append(hidden[first + i] + update)
                continue
            place = first + slow.index(i)
            own.append(made[place])
            paid[i] = (paid[i] + received[place].item()) / 2 if fast else received[place].item()
        hidden = torch.stack(own)
    places = sorted(sorted(range(patches), key=lambda i: -paid[i])[:k])
    return hidden[first:][places], places


def _counts(n: int, k: int, layers: int) -> list[int]:
    """As many merged in every layer, rounded down; the rest in the last; fewer if more than half would go."""
    counts = []
    for left in range(layers, 0, -1):
        n -= (n - k) // left
        while n > k * 2 ** (left - 1):
            n -= 1
        counts.append(n)
    return counts


def _images(family: Family, model: Any, prompt: dict[str, Tensor], images: Sequence[Size], tile: Tile) -> list[Tensor]:
    """[n, d] of each image of one prompt, NaN where a token was left out."""
    base = model.base_model
    tower: Any = getattr(base, TABLE[family.name].tower.name)
    projector: Callable[[Tensor], Tensor] = getattr(base, "multi_modal_projector", None) or base.aligner
    weight = next(tower.parameters())
    whole = []
    for number, size in enumerate(images):
        pixels = prompt["pixel_values"][number].to(weight.dtype)
        tiles = []
        for own in pixels.reshape(-1, *pixels.shape[-3:]):
            hidden, places = tile(tower, own, depth=DEPTH.get(family.name, LAYERS - 1))
            if family.name in DEPTH:
                hidden = tower.post_layernorm(hidden)
            tokens = projector(hidden[None])[0]
            slots = tokens.new_full((SIDE**2, tokens.shape[-1]), torch.nan)
            tiles.append(slots.index_copy(0, torch.tensor(places), tokens))
        whole.append(_packed(family, base, tiles, size) if isinstance(family, LlavaNext) else tiles[0])
    return whole


def _packed(family: LlavaNext, base: Any, tiles: list[Tensor], size: Size) -> Tensor:
    """The base view, then lines over all other tiles, without padding, each with a newline at its end."""
    height, width = (pixels // 16 * SIDE for pixels in select_best_resolution(size, family.pinpoints))
    lines, columns = family.lines(size)
    top, left, across = (height - lines) // 2, (width - columns) // 2, width // SIDE
    rows = [*tiles[0]]
    for y in range(top, top + lines):
        for x in range(left, left + columns):
            rows.append(tiles[1 + y // SIDE * across + x // SIDE][y % SIDE * SIDE + x % SIDE])
        rows.append(base.image_newline.to(tiles[0].dtype))
    return torch.stack(rows)
