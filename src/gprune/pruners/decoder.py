"""What the methods that drop visual tokens inside the LLM share: when tokens leave, and how many."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..checks import OneOf, setting
from ..errors import UnfitSettings
from ..tokens import Budget, kept_count
from .base import Acts, Method
from .bat import weighted_means

Match = Literal["tokens", "flops"]

ALL_BUT_ROUNDING = 1 - 1e-9
"""Shares from here on are every token."""


@dataclass(frozen=True, eq=False)
class InsideTokens:
    """The visual tokens of one image in front of a layer of the LLM, as far as they have come.

    Args:
        states: floating [n, d], hidden states, the input of the layer.
        attention: float32 [n], what the last token of the prompt paid to each in the layer before, mean over the
            heads. Of the images of a prompt, each has its part of the same row.
        key_norms: float32 [n], L2 norm of each token's keys in the layer before, over all heads.
        change: float32 [n], L2 norm of the difference between `states` and the input of the layer before.
        text: floating [m, d], hidden states of the text of the prompt.
        text_key_norms: float32 [m], of their keys.
        text_attention: float32 [m, n], what each token of the text paid to each in the layer before, mean over the
            heads; 0 where it cannot see it.
        embeddings: floating [N, d], of all tokens of the image, those that left included: what the LLM was given.
        text_embeddings: floating [m, d], of the text.
    """

    states: Tensor
    attention: Tensor
    key_norms: Tensor
    change: Tensor
    text: Tensor
    text_key_norms: Tensor
    text_attention: Tensor
    embeddings: Tensor
    text_embeddings: Tensor

    def __len__(self) -> int:
        return self.states.shape[0]

    @property
    def readers(self) -> Tensor:
        """bool [m], the tokens of the text that see the image, as those do that come after it."""
        return self.text_attention.sum(-1) > 0

    def attention_of(self, readers: Tensor) -> Tensor:
        """float32 [n], the mean of what these tokens of the text, bool [m], paid; where none are, as `attention`."""
        return self.text_attention[readers].mean(0) if readers.any() else self.attention


class Share(Budget):
    """A ratio of the tokens, on average over the layers."""

    kinds = (float,)

    def __str__(self) -> str:
        return "a float in (0, 1], the share of visual tokens on average over the layers of the LLM"


@dataclass
class DecoderPruner(Method):
    """A method that drops visual tokens between layers of the LLM.

    All visual tokens of an image are ranked together, those that other methods never drop (newline rows) included,
    and all keep their original positions. What is dropped leaves the computation and the KV cache of the later
    layers; the logits of dropped tokens are those of a zero state. Tokens are dropped in the call that carries the
    images, so without a KV cache (`use_cache=False`) every step ranks anew. The last token of the prompt is the first
    one whose logits are asked for by `logits_to_keep`, so that drafted tokens, or an answer to be scored, have no say.

    Args:
        keep: float in (0, 1]. Read as `match` says; for the methods that can only keep so few, the smallest that can
            be reached is named in the error when attaching.
        match: "tokens" keeps this share of an image's tokens on average over the layers of the LLM; "flops" spends
            as many FLOPs on them in the LLM's prefill as a method that keeps this share before the LLM
            (`ImageReport.flops_ratio`).

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    keep: float = setting(0.3, Share())
    _: KW_ONLY
    match: Match = setting("tokens", OneOf(get_args(Match)))

    looks: ClassVar[bool] = True
    """Whether `choose` looks at anything but the hidden states."""

    compares: ClassVar[bool] = False
    """Whether `InsideTokens.change` is wanted; else it is empty."""

    reads: ClassVar[bool] = False
    """Whether `text_attention`, `embeddings` and `text_embeddings` are wanted; else they are empty."""

    @abstractmethod
    def profile(self, layers: int, share: float) -> list[float]:
        """Share of an image's tokens that each layer of an LLM sees; never rising, and rising with `share`.

        Args:
            layers: of the LLM.
            share: in [0, 1]; with 1, all of it is 1.

        Raises:
            UnfitSettings: the settings of the method do not fit an LLM of so many layers.
        """

    def choose(self, tokens: InsideTokens, k: int) -> Tensor:
        """Choose k >= 1 of the tokens: int64 [k], distinct indices, in any order."""
        return tokens.attention.sort(descending=True, stable=True).indices[:k]

    def schedule(self, layers: int, pair_cost: float = 0.0) -> list[float]:
        """Share of an image's tokens that each layer sees so that it comes to `keep`.

        Args:
            layers: of the LLM.
            pair_cost: cost of attention over all pairs of the image's tokens, as a share of the cost of everything
                else in a layer. Only read for match="flops".

        Raises:
            UnfitSettings: `keep` cannot be reached; names the smallest that can.
        """
        pair_cost = pair_cost if self.match == "flops" else 0.0
        if self.keep >= ALL_BUT_ROUNDING:
            return [1.0] * layers
        budget = layer_cost(self.keep, pair_cost)
        least = mean_layer_cost(self.profile(layers, 0.0), pair_cost)
        if budget < least - 1e-9:
            raise UnfitSettings(
                f"{type(self).__name__}(keep={self.keep}) drops too late for that in an LLM of {layers} layers: the "
                f"smallest keep is {share_at_cost(least, pair_cost):.4g}; pass that or more, or drop earlier"
            )
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            spent = mean_layer_cost(self.profile(layers, middle), pair_cost)
            low, high = (middle, high) if spent < budget else (low, middle)
        return self.profile(layers, high)

    def counts(self, tokens: int, layers: int, pair_cost: float = 0.0) -> list[int]:
        """How many of an image's tokens each layer sees."""
        return [kept_count(tokens, share) if share > 1e-9 else 0 for share in self.schedule(layers, pair_cost)]

    @property
    def acts(self) -> Acts:
        """In the LLM, between two of its layers."""
        return "in the LLM"


@dataclass
class DecoderMerger(DecoderPruner):
    """A method that merges visual tokens between layers of the LLM.

    What tokens are merged into stays in its place, with its position. Gradients flow through what is merged.
    """

    sums: ClassVar[bool] = False
    """Whether a token becomes the sum of those that it stands for; else their mean."""

    @abstractmethod
    def stands(self, tokens: InsideTokens, k: int) -> Tensor:
        """Which token stands for each: int64 [n], -1 for those dropped; exactly k >= 1 stand, for themselves too."""

    def choose(self, tokens: InsideTokens, k: int) -> Tensor:
        """The k tokens that stand for themselves and others: int64 [k], ascending."""
        return standing(self.stands(tokens, k))

    def merged(self, states: Tensor, stands: Tensor) -> Tensor:
        """Hidden states floating [k, d] of the tokens that stand, in order, of those of all, [n, d]."""
        chosen = standing(stands)
        members = stands == chosen[:, None]
        means = weighted_means(states, torch.ones_like(stands, dtype=torch.float32), members, states[chosen])
        return means * members.sum(-1, keepdim=True).to(means.dtype) if self.sums else means


def standing(stands: Tensor) -> Tensor:
    """The tokens that stand for themselves, of int64 [n]: int64 [k], ascending."""
    return (stands == torch.arange(len(stands), device=stands.device)).nonzero().squeeze(1)


def powers(stages: Sequence[float], layers: int, share: float) -> list[float]:
    """The profile of methods that keep the same share of what is left, again and again.

    Args:
        stages: after which shares of the layers; the first after one layer at least.
        layers: of the LLM.
        share: of those before that each keeps.

    Returns:
        1 up to the first stage, then share, share^2, ...
    """
    starts = [max(1, round(stage * layers)) for stage in stages]
    return [share ** sum(start <= layer for start in starts) for layer in range(layers)]


def layer_cost(share: float, pair_cost: float) -> float:
    """What a layer costs that sees this share of the tokens, as a multiple of all that is linear in them."""
    return share + pair_cost * share**2


def mean_layer_cost(shares: Sequence[float], pair_cost: float) -> float:
    """The mean over layers of which each sees one of these shares of the tokens."""
    return sum(layer_cost(share, pair_cost) for share in shares) / len(shares)


def share_at_cost(cost: float, pair_cost: float) -> float:
    """The share of the tokens at which a layer costs this much: the inverse of `layer_cost`."""
    if pair_cost == 0:
        return cost
    return 2 * cost / (1 + math.sqrt(1 + 4 * pair_cost * cost))


def check_layer(method: str, layer: int, layers: int) -> None:
    """Raise UnfitSettings unless an LLM of so many layers has a layer of this index."""
    if layer >= layers:
        raise UnfitSettings(
            f"{method}(layer={layer}) never drops a token in an LLM of {layers} layers; accepted is 1 to {layers - 1}; "
            f"the papers use 2"
        )
