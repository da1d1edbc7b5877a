"""Has informative tokens take the slow way through a vision tower, and one token stand for all others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .. import host
from ..pruners.evovit import EvoViT
from .tower_hooks import TowerHooks, tower_layers
from .tower_reading import attention_received, layer_index

_MEMORY = 0.5
"""The share of what it was in the global attention of a token."""


class TowerEvolution(TowerHooks[EvoViT]):
    """The hooks that give a layer fewer tokens, and its update of their representative to all others."""

    def check(self) -> None:
        """Raise unless the tower has paid attention before its output becomes the visual tokens."""
        self._last()

    def forget(self) -> None:
        """No attention is paid yet."""
        self.first = max(1, round(len(tower_layers(self.tower)) / 3))
        self.last = self._last()
        self.attention: Tensor | None = None
        self.whole: Tensor | None = None
        self.ways: tuple[Tensor, Tensor] | None = None
        self.kept: Tensor | None = None

    def narrow(self, index: int, layer: Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before a layer: the class token, the informative tokens, and the representative of the others."""
        hidden, self.ways = args[0], None
        if index < self.first or self.attention is None:
            return None
        slow, fast = self._divided()
        if not fast.shape[1]:
            return None
        self.whole, self.ways = hidden, (slow + self.class_token, fast + self.class_token)
        weights = self.attention.gather(1, fast).clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        others = _taken(hidden, self.ways[1]).float()
        representative = (others * (weights / weights.sum(1, keepdim=True)).to(hidden.device)).sum(1, keepdim=True)
        own = [hidden[:, : self.class_token], _taken(hidden, self.ways[0]), representative.to(hidden.dtype)]
        return (torch.cat(own, dim=1), *args[1:])

    def join(self, index: int, layer: Module, args: Any, output: Tensor) -> Tensor | None:
        """After a layer: all tokens at their places again, and the global attention that now is."""
        assert self.queries is not None and self.keys is not None
        query, key = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.queries, self.keys))
        scaling = query.shape[-1] ** -0.5
        paid = attention_received(query, key, None, scaling, bool(self.class_token))[:, self.class_token :]
        whole = None
        if self.ways is None or self.whole is None or self.attention is None:
            self.attention = paid
        else:
            slow = self.ways[0] - self.class_token
            before = self.attention.to(paid.device).gather(1, slow)
            mixed = _MEMORY * before + (1 - _MEMORY) * paid[:, :-1]
            self.attention = self.attention.to(paid.device).scatter(1, slow, mixed)
            whole = self._joined(args[0], output)
        if index == self.last:
            self.kept = self._divided()[0]
        return whole

    def put_back(self, projector: Module, args: Any, output: Tensor) -> Tensor | None:
        """Visual tokens at the places of their patches, NaN where one is not informative."""
        if self.kept is None or self.attention is None:
            return None
        places, patches = self.kept[..., None].to(output.device), self.attention.shape[1]
        self.forget()
        if output.shape[1] != patches:
            raise ValueError(
                f"the projector was given {output.shape[1]} tokens of a tile of {patches} patches; {host.STRATEGY} is "
                f"that of the config with {self.method.label}; leave it out of the call"
            )
        return None if places.shape[1] == patches else self.spread(_taken(output, places[..., 0]), places, patches)

    def _last(self) -> int:
        return layer_index(self.model.base_model, self.tower, self.arguments)

    def _divided(self) -> tuple[Tensor, Tensor]:
        """The informative patches of each tile, int64 [tiles, k], and the others, ascending."""
        assert self.attention is not None
        k = self.tokens_of_tile(self.attention.shape[1])
        order = self.attention.sort(dim=-1, descending=True, stable=True).indices
        return order[:, :k].sort(-1).values, order[:, k:].sort(-1).values

    def _joined(self, given: Tensor, output: Tensor) -> Tensor:
        """What a layer made of what it was given, at the places of all tokens."""
        assert self.whole is not None and self.ways is not None
        slow, fast = (way.to(output.device)[..., None].expand(-1, -1, output.shape[-1]) for way in self.ways)
        whole = self.whole.to(output.device)
        update = output[:, -1:] - given[:, -1:].to(output.device)
        rest = whole.gather(1, fast) + update
        first = torch.cat([output[:, : self.class_token], whole[:, self.class_token :]], dim=1)
        return first.scatter(1, slow, output[:, self.class_token : -1]).scatter(1, fast, rest)


def _taken(tokens: Tensor, places: Tensor) -> Tensor:
    """[B, k, d] of [B, n, d], by int64 [B, k]."""
    return tokens.take_along_dim(places[..., None].to(tokens.device), dim=1)
