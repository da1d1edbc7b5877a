"""Merges tokens inside a vision tower, and puts what is left back to its places in the projector's output."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module

from .. import host
from ..errors import UnsupportedModel
from ..pruners.tome import ToMe, average, soft_matching, tokens_after_layers
from .tower_hooks import TowerHooks, tower_layers, unsupported_tower


class TowerMerging(TowerHooks[ToMe]):
    """The hooks that merge tokens in every layer of a tower.

    Tokens are merged between attention and MLP: the input of the norm before the MLP is, and the layer's output is put
    together anew, of the merged input and the MLP's output.
    """

    def check(self) -> None:
        """Raise unless each layer can merge as many as it must."""
        last = host.feature_layers(self.model.config, {})
        if not isinstance(last, int):
            reason = f"its projector reads the layers {list(last)}, whose numbers of tokens would differ"
            raise unsupported_tower(self.method, self.model, reason)
        self._check_backend(self.tower)
        vision: Any = self.model.config.vision_config
        self._plan((vision.image_size // vision.patch_size) ** 2)

    def forget(self) -> None:
        """Nothing is merged yet."""
        self.patches, self.counts = 0, list[int]()
        self.slots: Tensor | None = None
        self.sizes: Tensor | None = None
        self.merged: Tensor | None = None
        self.mlp: Tensor | None = None

    def begin(self, tower: Module, args: Any) -> None:
        """Before the tower: nothing is merged yet."""
        self._check_backend(tower)
        super().begin(tower, args)

    def weigh(self, attention: Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Add the log of every token's size to the attention logits."""
        if self.sizes is None:
            return None
        return args, {**kwargs, "attention_mask": self.sizes.log().mT[:, None].to(kwargs["hidden_states"])}

    def merge(self, index: int, norm: Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        """Before the MLP of a layer: its tokens, merged."""
        hidden = args[0]
        tiles, count, _ = hidden.shape
        if index == 0:
            self.patches = count - self.class_token
            self.counts = self._plan(self.patches)
        merges = count - self.class_token - self.counts[index]
        self.merged = None
        if merges == 0:
            return None
        if self.slots is None or self.sizes is None:
            self.slots = torch.arange(count, device=hidden.device).expand(tiles, -1)[..., None]
            self.sizes = torch.ones_like(self.slots, dtype=torch.float32)
        assert self.keys is not None
        metric = self.keys.float().unflatten(-1, (self.heads, -1)).mean(-2)
        matching = soft_matching(metric, merges, bool(self.class_token))
        self.slots = matching.survivors(self.slots.to(hidden.device))
        self.merged, self.sizes = average(hidden, self.sizes.to(hidden.device), matching)
        return (self.merged,)

    def note_mlp(self, mlp: Module, args: Any, output: Tensor) -> Tensor | None:
        """Keep what the MLP made of merged tokens."""
        if self.merged is None:
            return None
        self.mlp = output
        # The layer adds this to its tokens before merging: one that can be added to any number of them.
        return output[:, :1]

    def join(self, index: int, layer: Module, args: Any, output: Tensor) -> Tensor | None:
        """After a layer: the merged tokens with what the MLP made of them."""
        if self.merged is None or self.mlp is None:
            return None
        output, self.merged, self.mlp = self.merged + self.mlp, None, None
        return output

    def put_back(self, projector: Module, args: Any, output: Tensor) -> Tensor | None:
        """Visual tokens at the places of their patches, NaN where a token was merged into another."""
        if self.slots is None:
            return None
        places, patches = self.slots[:, self.class_token :] - self.class_token, self.patches
        self.forget()
        if output.shape[1] != places.shape[1]:
            raise ValueError(
                f"the projector was given {output.shape[1]} tokens of a tile, where {places.shape[1]} are left after "
                f"merging; {host.FEATURE_LAYERS[0]} and {host.STRATEGY} are those of the config with "
                f"{self.method.label}; leave them out of the call"
            )
        return self.spread(output, places, patches)

    def _plan(self, patches: int) -> list[int]:
        """How many of a tile's patches are left after each layer of the tower."""
        count, k = len(tower_layers(self.tower)), self.tokens_of_tile(patches)
        depth = cast(int, host.feature_layers(self.model.config, {})) % (count + 1)
        return tokens_after_layers(patches, k, depth) + [k] * (count - depth)

    def _check_backend(self, tower: Module) -> None:
        backend = host.backend_of(tower)
        if backend not in host.BACKENDS:
            raise UnsupportedModel(
                f"{self.method.label} adds the sizes of tokens to the attention logits, which the backend "
                f'"{backend}" does not take; accepted are {" and ".join(host.BACKENDS)}; call '
                f'model.set_attn_implementation({{"vision_config": "sdpa"}}), or {self.method.instead}'
            )
