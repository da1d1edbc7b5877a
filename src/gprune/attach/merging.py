"""Merges tokens inside a vision tower, and puts what is left back to its places in the projector's output."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from .. import host
from ..errors import UnsupportedModel
from ..pruners.tome import average, match, schedule
from ..tokens import Keep, kept_count
from .support import layout_of

PARTS = {
    "deepseek_vl": ("vision_model", "aligner"),
    "llava": ("vision_tower", "multi_modal_projector"),
    "llava_next": ("vision_tower", "multi_modal_projector"),
    "llava_next_video": ("vision_tower", "multi_modal_projector"),
    "paligemma": ("vision_tower", "multi_modal_projector"),
    "vipllava": ("vision_tower", "multi_modal_projector"),
}
"""Tower and projector of the families whose projector makes one visual token of one patch, by model_type."""

TILED = ("llava_next", "llava_next_video")
"""Those that cut an image into as many tiles as its shape asks for."""

TOWERS = ("clip_vision_model", "siglip_vision_model")

REFUSED = {
    "aria": "learned queries, of a number of their own, stand for its patches",
    "llava_onevision": "it scales the grid of patches down, in which none may be missing",
}
NEIGHBOURS = "its visual tokens are made of neighbouring patches, of which none may be missing"


def merge_in_tower(model: PreTrainedModel, keep: Keep) -> list[RemovableHandle]:
    """Put the hooks on the vision tower and the projector of a model.

    Raises:
        UnsupportedModel, ValueError: see `ToMe.hooks`.
    """
    config: Any = model.config
    family = config.model_type
    if family not in PARTS:
        raise _unsupported(model, REFUSED.get(family, NEIGHBOURS))
    tower, projector = (getattr(model.base_model, part) for part in PARTS[family])
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
    if family in TILED and isinstance(keep, int):
        raise ValueError(
            f"keep={keep} tokens per image: {family} cuts images into different numbers of tiles, of which the vision "
            f'tower merges every one alike; pass a ratio, for example keep=0.3, or where="tokens"'
        )
    layers = next(module for name, module in tower.named_modules() if name.endswith("encoder.layers"))
    depth = last % (len(layers) + 1)

    def plan(patches: int) -> list[int]:
        k = kept_count(patches, keep)
        return schedule(patches, k, depth) + [k] * (len(layers) - depth)

    plan((config.vision_config.image_size // config.vision_config.patch_size) ** 2)
    handles = TowerMerging(plan, class_token, config.vision_config.num_attention_heads).put_on(tower, layers, projector)
    resampler: Any = getattr(model.base_model, "vision_resampler", None)
    return handles if resampler is None else [*handles, resampler.register_forward_pre_hook(_refuse_video)]


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

    def put_on(self, tower: Module, layers: Any, projector: Module) -> list[RemovableHandle]:
        """Returns the handles, to remove the hooks by."""
        handles = [
            tower.register_forward_pre_hook(self._begin),
            projector.register_forward_hook(self._put_back),
        ]
        for index, layer in enumerate(layers):
            handles += [
                layer.self_attn.register_forward_pre_hook(self._weigh, with_kwargs=True),
                layer.self_attn.k_proj.register_forward_hook(self._note_keys),
                layer.layer_norm2.register_forward_pre_hook(partial(self._merge, index)),
                layer.mlp.register_forward_hook(self._note_mlp),
                # Before hooks that note hidden states.
                layer.register_forward_hook(self._join, prepend=True),
            ]
        return handles

    def _forget(self) -> None:
        self.patches, self.counts = 0, list[int]()
        self.slots: Tensor | None = None
        self.sizes: Tensor | None = None
        self.keys: Tensor | None = None
        self.merged: Tensor | None = None
        self.mlp: Tensor | None = None

    def _begin(self, tower: Module, args: Any) -> None:
        self._forget()
        _check_backend(tower)
        if host.recomputes(tower):
            raise ValueError(
                'ToMe(where="vision") with gradient checkpointing: the layers would be computed again without the '
                'tokens\' sizes; call model.gradient_checkpointing_disable(), or pass where="tokens"'
            )

    def _weigh(self, attention: Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Add the log of every token's size to the attention logits."""
        if self.sizes is None:
            return None
        return args, {**kwargs, "attention_mask": self.sizes.log().mT[:, None].to(kwargs["hidden_states"])}

    def _note_keys(self, projection: Module, args: Any, output: Tensor) -> None:
        self.keys = output.detach()

    def _merge(self, index: int, norm: Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
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
        matching = match(metric, merges, self.class_token)
        self.slots = matching.left(self.slots.to(hidden.device))
        self.merged, self.sizes = average(hidden, self.sizes.to(hidden.device), matching)
        return (self.merged,)

    def _note_mlp(self, mlp: Module, args: Any, output: Tensor) -> Tensor | None:
        if self.merged is None:
            return None
        self.mlp = output
        # The layer adds this to its tokens before merging: one that can be added to any number of them.
        return output[:, :1]

    def _join(self, layer: Module, args: Any, output: Tensor) -> Tensor | None:
        if self.merged is None or self.mlp is None:
            return None
        output, self.merged, self.mlp = self.merged + self.mlp, None, None
        return output

    def _put_back(self, projector: Module, args: Any, output: Tensor) -> Tensor | None:
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


def check_merged_features(model: PreTrainedModel) -> None:
    """Raise UnsupportedModel where merged features cannot take the place of an encoder's output."""
    if layout_of(model).project is not None:
        raise UnsupportedModel(
            f'ToMe(where="tokens") merges tokens as the LLM receives them, but {type(model).__name__} '
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


def _refuse_video(resampler: Module, args: Any) -> None:
    raise ValueError(
        'this call carries a video, whose frames are pooled before the projector, so that ToMe(where="vision") cannot '
        'merge their tokens; detach the pruner for calls with videos, or pass where="tokens"'
    )


def _unsupported(model: PreTrainedModel, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f'ToMe(where="vision") merges tokens inside the vision tower, which cannot be done in a '
        f"{type(model).__name__} (model_type={model.config.model_type!r}): {reason}; accepted are {', '.join(PARTS)}; "
        f'pass where="tokens"'
    )
