"""Merges tokens inside a vision tower, and puts what is left back to its places in the projector's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
from ..pruners.base import Method
from ..pruners.tome import ToMe, average, soft_matching, tokens_after_layers
from ..tokens import Keep, kept_count

TOWERS = ("clip_vision_model", "siglip_vision_model")

_MERGING: ContextVar[TowerMerging | None] = ContextVar("gprune_merging", default=None)
"""What merges in the tower that this thread is encoding with."""


def check_tower(method: Method, model: PreTrainedModel) -> None:
    """Raise unless tokens can be merged inside the vision tower of this model, as this method would.

    Raises:
        UnsupportedModel: the family's tower or projector needs all tokens.
        UnfitSettings: so few tokens as `keep` leaves cannot be reached in that many layers, or `keep` is a number of
            tokens and the model cuts an image into tiles.
    """
    config: Any = model.config
    family, keep = config.model_type, method.keep
    if reason := missing(method, family):
        raise _unsupported(model, reason)
    tower, _ = _parts(model)
    if config.vision_config.model_type not in TOWERS:
        raise _unsupported(model, f"its vision tower is a {config.vision_config.model_type}; accepted are {TOWERS}")
    last = host.feature_layers(config, {})
    if not isinstance(last, int):
        raise _unsupported(model, f"its projector reads the layers {list(last)}, whose numbers of tokens would differ")
    class_token = host.has_class_token(tower)
    strategy = host.feature_strategy(config, {})
    if strategy is not None and (strategy == "default") != class_token:
        first = "a class token, which would be a visual token" if class_token else "no class token, but its first patch"
        raise _unsupported(model, f'{host.STRATEGY}="{strategy}", and its tower has {first}')
    _check_backend(tower)
    if FAMILIES[family].tiling == "any resolution" and isinstance(keep, int):
        raise UnfitSettings(
            f"keep={keep} tokens per image: {family} cuts images into different numbers of tiles, of which the vision "
            f'tower merges every one alike; pass a ratio, for example keep=0.3, or where="tokens"'
        )
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    _plan(model, keep, patches)


@contextmanager
def merging_tower(model: PreTrainedModel, method: Method) -> Iterator[bool]:
    """While it lasts, this thread's images are merged in the tower, if the method does that; yields whether it does."""
    part = next((part for part in method.parts if part.acts == "in the tower"), None)
    if part is None:
        yield False
        return
    config: Any = model.config
    tower, _ = _parts(model)
    heads = config.vision_config.num_attention_heads
    token = _MERGING.set(TowerMerging(partial(_plan, model, part.keep), host.has_class_token(tower), heads))
    try:
        yield True
    finally:
        _MERGING.reset(token)


def put_on_tower(model: PreTrainedModel) -> list[RemovableHandle]:
    """Put hooks on the vision tower and the projector of a model that merge where a thread is `merging_tower`."""
    tower, projector = _parts(model)
    handles = [
        tower.register_forward_pre_hook(_merging(TowerMerging.begin)),
        projector.register_forward_hook(_merging(TowerMerging.put_back)),
    ]
    for index, layer in enumerate(_layers(tower)):
        attention = host.attention_in(layer)
        handles += [
            attention.register_forward_pre_hook(_merging(TowerMerging.weigh), with_kwargs=True),
            attention.k_proj.register_forward_hook(_merging(TowerMerging.note_keys)),
            layer.layer_norm2.register_forward_pre_hook(_merging(TowerMerging.merge, index)),
            layer.mlp.register_forward_hook(_merging(TowerMerging.note_mlp)),
            # Before hooks that note hidden states.
            layer.register_forward_hook(_merging(TowerMerging.join), prepend=True),
        ]
    resampler: Any = getattr(model.base_model, "vision_resampler", None)
    if resampler is not None:
        handles.append(resampler.register_forward_pre_hook(_merging(TowerMerging.refuse_video)))
    return handles


def _merging(hook: Callable[..., Any], *first: Any) -> Callable[..., Any]:
    """A hook of what merges in this thread, of nothing where nothing does."""
    return partial(_call_merging, hook, first)


def _call_merging(hook: Callable[..., Any], first: tuple[Any, ...], *args: Any) -> Any:
    merging = _MERGING.get()
    return None if merging is None else hook(merging, *first, *args)


def _parts(model: PreTrainedModel) -> tuple[Any, Any]:
    row = FAMILIES[model.config.model_type]
    assert row.tower is not None
    return getattr(model.base_model, row.tower.name), getattr(model.base_model, row.projector)


def _layers(tower: Module) -> Any:
    return next(module for name, module in tower.named_modules() if name.endswith("encoder.layers"))


def _plan(model: PreTrainedModel, keep: Keep, patches: int) -> list[int]:
    """How many of a tile's patches are left after each layer of the tower."""
    count, k = len(_layers(_parts(model)[0])), kept_count(patches, keep)
    depth = cast(int, host.feature_layers(model.config, {})) % (count + 1)
    return tokens_after_layers(patches, k, depth) + [k] * (count - depth)


class TowerMerging:
    """The hooks that merge tokens in every layer of a tower, and what they hand one another during a call.

    A layer is attention, then MLP, each added to its input. Tokens are merged between the two: the input of the
    norm before the MLP is, and the layer's output is put together anew, of the merged input and the MLP's output.

    Args:
        plan: patches of a tile -> how many tokens are left after each layer, the class token not counted.
        class_token: whether the first token is one.
        heads: of the attention.
    """

    def __init__(self, plan: Callable[[int], list[int]], class_token: bool, heads: int) -> None:
        self.plan, self.class_token, self.heads = plan, class_token, heads
        self._forget()

    def _forget(self) -> None:
        self.patches, self.counts = 0, list[int]()
        self.slots: Tensor | None = None
        self.sizes: Tensor | None = None
        self.keys: Tensor | None = None
        self.merged: Tensor | None = None
        self.mlp: Tensor | None = None

    def begin(self, tower: Module, args: Any) -> None:
        """Before the tower: nothing is merged yet."""
        self._forget()
        _check_backend(tower)
        if host.recomputes(tower):
            raise ValueError(
                'ToMe(where="vision") with gradient checkpointing: the layers would be computed again without the '
                'tokens\' sizes; call model.gradient_checkpointing_disable(), or pass where="tokens"'
            )

    def weigh(self, attention: Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Add the log of every token's size to the attention logits."""
        if self.sizes is None:
            return None
        return args, {**kwargs, "attention_mask": self.sizes.log().mT[:, None].to(kwargs["hidden_states"])}

    def note_keys(self, projection: Module, args: Any, output: Tensor) -> None:
        """Keep the keys of a layer, by which its tokens are matched."""
        self.keys = output.detach()

    def merge(self, index: int, norm: Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        """Before the MLP of a layer: its tokens, merged."""
        hidden = args[0]
        tiles, count, _ = hidden.shape
        if index == 0:
            self.patches = count - self.class_token
            self.counts = self.plan(self.patches)
        merges = count - self.class_token - self.counts[index]
        self.merged = None
        if merges == 0:
            return None
        if self.slots is None or self.sizes is None:
            self.slots = torch.arange(count, device=hidden.device).expand(tiles, -1)[..., None]
            self.sizes = torch.ones_like(self.slots, dtype=torch.float32)
        assert self.keys is not None
        metric = self.keys.float().unflatten(-1, (self.heads, -1)).mean(-2)
        matching = soft_matching(metric, merges, self.class_token)
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

    def join(self, layer: Module, args: Any, output: Tensor) -> Tensor | None:
        """After a layer: the merged tokens with what the MLP made of them."""
        if self.merged is None or self.mlp is None:
            return None
        output, self.merged, self.mlp = self.merged + self.mlp, None, None
        return output

    def put_back(self, projector: Module, args: Any, output: Tensor) -> Tensor | None:
        """Visual tokens at the places of their patches, NaN where a token was merged into another.

        What became NaN by itself turns to Inf, which no method takes for a visual token.
        """
        if self.slots is None:
            return None
        first = int(self.class_token)
        places = self.slots[:, first:].to(output.device) - first
        patches, left = self.patches, places.shape[1]
        self._forget()
        if output.shape[1] != left:
            raise ValueError(
                f"the projector was given {output.shape[1]} tokens of a tile, where {left} are left after merging; "
                f"{host.FEATURE_LAYERS[0]} and {host.STRATEGY} are those of the config with "
                f'ToMe(where="vision"); leave them out of the call'
            )
        output = output.masked_fill(output.isnan(), torch.inf)
        whole = output.new_full((len(output), patches, output.shape[-1]), torch.nan)
        return whole.scatter(1, places.expand_as(output), output)

    def refuse_video(self, resampler: Module, args: Any) -> None:
        """Frames are pooled before the projector, so that none of their tokens may be missing."""
        raise ValueError(
            'this call carries a video, whose frames are pooled before the projector, so that ToMe(where="vision") '
            'cannot merge their tokens; detach the pruner for calls with videos, or pass where="tokens"'
        )


def check_merged_features(method: Method, model: PreTrainedModel) -> None:
    """Raise UnsupportedModel where merged features cannot take the place of an encoder's output."""
    if missing(method, model.config.model_type):
        raise UnsupportedModel(
            f"{type(method).__name__} merges tokens as the LLM receives them, but {type(model).__name__} "
            f"(model_type={model.config.model_type!r}) projects them after they can be replaced; use a method that "
            f"keeps tokens as they are"
        )


def _check_backend(tower: Module) -> None:
    backend = host.backend_of(tower)
    if backend not in host.BACKENDS:
        raise UnsupportedModel(
            f'ToMe(where="vision") adds the sizes of tokens to the attention logits, which the backend '
            f'"{backend}" does not take; accepted are {" and ".join(host.BACKENDS)}; call '
            f'model.set_attn_implementation({{"vision_config": "sdpa"}}), or pass where="tokens"'
        )


def _unsupported(model: PreTrainedModel, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f'ToMe(where="vision") merges tokens inside the vision tower, which cannot be done in a '
        f"{type(model).__name__} (model_type={model.config.model_type!r}): {reason}; accepted are "
        f"{', '.join(families_of(ToMe()))}; "
        f'pass where="tokens"'
    )
