"""Methods as dictionaries of what JSON has, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from inspect import isabstract
from typing import Any

import torch

from ..errors import BadType, BadValue
from ..plugins import plugin_names
from ..tokens import Cover
from . import PRUNERS, get_pruner
from .base import Method, Unpruned
from .chain import Chain

_METHOD = "method"
"""The key of the name."""


def as_recipe(method: Method) -> dict[str, Any]:
    """See `Method.to_dict`."""
    settings = {field.name: getattr(method, field.name) for field in fields(method) if field.init}  # type: ignore[arg-type]
    return {_METHOD: method.name, **{name: _written(value) for name, value in settings.items()}}


def of_recipe(recipe: Mapping[str, Any], kind: type[Method]) -> Method:
    """See `Method.from_dict`, called on the class `kind`."""
    special = {Chain.name: Chain, Unpruned.name: Unpruned, **({} if isabstract(kind) else {kind.name: kind})}
    name = recipe.get(_METHOD) if isinstance(recipe, Mapping) else None
    if name not in (known := [*dict.fromkeys((*PRUNERS, *special, *plugin_names()))]):
        raise BadValue(
            f"{recipe!r} names no method; accepted is a dictionary of Method.to_dict() whose {_METHOD!r} is one of "
            f"{', '.join(known)}; of a class of your own call its own from_dict"
        )
    found: Any = special.get(name) or get_pruner(name)
    if not issubclass(found, kind):
        raise BadType(
            f"the method is {name!r}, which is no {kind.__name__}; call {found.__name__}.from_dict, or "
            f"Method.from_dict for any"
        )
    settings = [field.name for field in fields(found) if field.init]
    if unknown := sorted(recipe.keys() - {_METHOD, *settings}):
        raise BadValue(f"{found.name} has no setting {unknown[0]!r}; accepted are {', '.join(settings)}; leave it out")
    return found(**{name: _read(value) for name, value in recipe.items() if name != _METHOD})


def _written(value: Any) -> Any:
    if isinstance(value, Method):
        return as_recipe(value)
    if isinstance(value, Cover):
        return {"cover": value.share, "at_most": value.at_most}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return torch.as_tensor(value).tolist()  # a mask


def _read(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return Cover(value["cover"], value.get("at_most", 1.0)) if "cover" in value else of_recipe(value, Method)  # type: ignore[type-abstract]
