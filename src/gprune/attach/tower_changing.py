"""Has a method leave out tokens inside the vision tower, in the calls of threads that prune by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from .. import host
from ..errors import UnfitSettings, UnsupportedModel
from ..families.table import FAMILIES, missing
from ..pruners.base import Method
from ..pruners.evovit import EvoViT
from ..pruners.tome import ToMe
from ..pruners.tower import TowerPruner
from .tower_evolving import TowerEvolution
from .tower_hooks import TowerHooks, tower_and_projector, tower_layers, unsupported_tower
from .tower_merging import TowerMerging

TOWERS = ("clip_vision_model", "siglip_vision_model")

_KINDS: dict[type[TowerPruner], type[TowerHooks[Any]]] = {ToMe: TowerMerging, EvoViT: TowerEvolution}

_CHANGING: ContextVar[TowerHooks[Any] | None] = ContextVar("gprune_changing", default=None)
"""What leaves out tokens in the tower that this thread is encoding with."""


def check_tower(method: TowerPruner, model: PreTrainedModel) -> None:
    """Raise unless tokens can be left out inside the vision tower of this model, as this method would.

    Raises:
        UnsupportedModel: the family's tower or projector needs all tokens.
        UnfitSettings: so few tokens as `keep` leaves cannot be reached in that many layers, or `keep` is a number of
            tokens and the model cuts an image into tiles.
    """
    config: Any = model.config
    family = config.model_type
    if reason := missing(method, family):
        raise unsupported_tower(method, model, reason)
    if (tower := config.vision_config.model_type) not in TOWERS:
        raise unsupported_tower(method, model, f"its vision tower is a {tower}; accepted are {TOWERS}")
    hooks = _hooks_of(method, model, {})
    strategy = host.feature_strategy(config, {})
    if strategy is not None and (strategy == "default") != bool(hooks.class_token):
        token = "a class token, which would be a visual token"
        first = token if hooks.class_token else "no class token, but its first patch"
        raise unsupported_tower(method, model, f'{host.STRATEGY}="{strategy}", and its tower has {first}')
    if FAMILIES[family].tiling == "any resolution" and isinstance(method.keep, int):
        raise UnfitSettings(
            f"keep={method.keep} tokens per image: {family} cuts images into different numbers of tiles, of which the "
            f"vision tower leaves as many of every one; pass a ratio, for example keep=0.3, or {method.instead}"
        )
    hooks.check()


@contextmanager
def changing_tower(model: PreTrainedModel, method: Method, arguments: Mapping[str, Any]) -> Iterator[bool]:
    """While it lasts, this thread's images lose tokens in the tower, if the method does that; yields whether it does.

    Args:
        arguments: that the encoder is called with.
    """
    part = next((part for part in method.parts if isinstance(part, TowerPruner) and part.acts == "in the tower"), None)
    if part is None:
        yield False
        return
    token = _CHANGING.set(_hooks_of(part, model, arguments))
    try:
        yield True
    finally:
        _CHANGING.reset(token)


def put_on_tower(model: PreTrainedModel) -> list[RemovableHandle]:
    """Put hooks on the vision tower and the projector of a model that act where a thread is `changing_tower`."""
    tower, projector = tower_and_projector(model)
    handles = [
        tower.register_forward_pre_hook(_changing("begin")),
        projector.register_forward_hook(_changing("put_back")),
    ]
    for index, layer in enumerate(tower_layers(tower)):
        attention = host.attention_in(layer)
        handles += [
            layer.register_forward_pre_hook(_changing("narrow", index)),
            attention.register_forward_pre_hook(_changing("weigh"), with_kwargs=True),
            attention.q_proj.register_forward_hook(_changing("note_queries")),
            attention.k_proj.register_forward_hook(_changing("note_keys")),
            layer.layer_norm2.register_forward_pre_hook(_changing("merge", index)),
            layer.mlp.register_forward_hook(_changing("note_mlp")),
            # Before hooks that note hidden states.
            layer.register_forward_hook(_changing("join", index), prepend=True),
        ]
    resampler: Any = getattr(model.base_model, "vision_resampler", None)
    if resampler is not None:
        handles.append(resampler.register_forward_pre_hook(_changing("refuse_video")))
    return handles


def check_merged_features(method: Method, model: PreTrainedModel) -> None:
    """Raise UnsupportedModel where merged features cannot take the place of an encoder's output."""
    if missing(method, model.config.model_type):
        raise UnsupportedModel(
            f"{type(method).__name__} merges tokens as the LLM receives them, but {type(model).__name__} "
            f"(model_type={model.config.model_type!r}) projects them after they can be replaced; use a method that "
            f"keeps tokens as they are"
        )


def _hooks_of(method: TowerPruner, model: PreTrainedModel, arguments: Mapping[str, Any]) -> TowerHooks[Any]:
    kind = next(hooks for known, hooks in _KINDS.items() if isinstance(method, known))
    return kind(method, model, arguments)


def _changing(hook: str, *first: Any) -> Callable[..., Any]:
    """A hook of what leaves out tokens in this thread, of nothing where nothing does."""
    return partial(_call_changing, hook, first)


def _call_changing(hook: str, first: tuple[Any, ...], *args: Any) -> Any:
    changing = _CHANGING.get()
    return None if changing is None else getattr(changing, hook)(*first, *args)
