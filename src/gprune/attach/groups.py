"""What can be put on a model, group by group, and how each comes off again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.nn import Module

from .. import host
from ..families.table import FAMILIES
from ..host import PIXELS
from .columns import NewInputs
from .conversation import WholeInputs
from .encoding import RecordingEncoder
from .llm import LayerHooks
from .positions import RopeIndex
from .tower_changing import put_on_tower
from .tower_narrowing import put_before_tower

if TYPE_CHECKING:
    from .hooks import Hooks


def _on_model(hooks: Hooks) -> Callable[[], None]:
    model, base = hooks.model, hooks.model.base_model
    encoders = {
        host.encoder_name(modality): RecordingEncoder(encoder, hooks, modality)
        for modality in PIXELS
        if (encoder := host.encoder_of(model, modality)) is not None
    }
    numbering = {host.ROPE_INDEX: RopeIndex(getattr(base, host.ROPE_INDEX), hooks)} if host.has_rope_3d(model) else {}
    preparing = WholeInputs if FAMILIES[model.config.model_type].numbered else NewInputs
    own = {host.MASK_MAKER: hooks.masks, host.PREPARE: preparing(getattr(model, host.PREPARE), hooks)}
    undo = [_replace(model, own), _replace(base, {**encoders, **numbering})]
    # On the base model too, which trainers call by itself.
    handles = [
        handle
        for module in (model, base)
        for handle in (
            module.register_forward_pre_hook(hooks.before, with_kwargs=True),
            module.register_forward_hook(hooks.after, with_kwargs=True),
        )
    ]
    return partial(_undo, [*undo, *(handle.remove for handle in handles)])


def _on_layers(hooks: Hooks) -> Callable[[], None]:
    layers = LayerHooks(hooks.model)
    undo = [_replace(attention, values) for attention, values in layers.looks()]
    return partial(_undo, [*undo, *(handle.remove for handle in layers.put_on())])


def _on_tower(hooks: Hooks) -> Callable[[], None]:
    return partial(_undo, [handle.remove for handle in put_on_tower(hooks.model)])


def _before_tower(hooks: Hooks) -> Callable[[], None]:
    return partial(_undo, [handle.remove for handle in put_before_tower(hooks.model)])


GROUPS: dict[str, Callable[[Hooks], Callable[[], None]]] = {
    "model": _on_model,
    "layers": _on_layers,
    "tower": _on_tower,
    "patches": _before_tower,
}
"""What can be put on, in this order; each returns what takes it off."""


def _replace(module: Module, values: dict[str, Any]) -> Callable[[], None]:
    """Set attributes of this module alone; returns what puts back what was there."""
    own = vars(module)
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    return partial(_put_back, module, values, before)


def _put_back(module: Module, values: dict[str, Any], before: dict[str, Any]) -> None:
    own = vars(module)
    for name in [name for name, value in values.items() if own.get(name) is value]:  # what came later is not ours
        if name in before and not _is_over(before[name]):
            own[name] = before[name]  # never gone in between: other threads may compute with it
        else:
            del own[name]


def _is_over(value: Any) -> bool:
    """Whether something is what hooks, since taken off, had put in its place: models can share a base model."""
    return isinstance(value, (RecordingEncoder, RopeIndex, WholeInputs)) and not value.hooks.placed


def _undo(steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step()
