"""Methods, budgets and seeds as people write them: `gprune:init=ones`, `0.3`, `128`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .checks import check_value
from .errors import BadValue, GpruneError
from .pruners import Method, Unpruned, get_pruner
from .tokens import Keep, OwnBudget, cover


def parse_keep(text: str) -> Keep:
    """A ratio with a point, `0.3`, a number without one, `128`, `cover:0.9`, `cover:0.9:at_most=0.5`, or `own`.

    Raises:
        ValueError: none of these.
    """
    if match := re.fullmatch(r"cover:([^:]+)(?::at_most=([^:]+))?", text):
        return cover(float(_number(match[1])), _number(match[2] or "1.0"))
    return "own" if text == "own" else _number(text)


def _number(text: str) -> float | int:
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no budget; accepted are a ratio such as 0.3, a number of tokens such as 100, "
            f"cover:0.9, cover:0.9:at_most=0.5 and own"
        ) from None


def parse_pruner(text: str, keep: Keep) -> Method:
    """A method with its settings: `name` or `name:setting=value:...`.

    Args:
        text: the name of a method, or "none" for the unpruned model, and settings that are literals, words, for `mask`
            the path of a picture, or for `weights` that of a folder.
        keep: see `Pruner`.

    Raises:
        ValueError, TypeError: unknown method or setting, or a value that the method refuses.
    """
    name, *settings = text.split(":")
    kind: Any = Unpruned if name == Unpruned.name else get_pruner(name)
    known = [field.name for field in fields(kind) if field.name != "keep"]
    values: dict[str, Any] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in known or not value:
            raise ValueError(f"method {text!r}: {name} has the settings {', '.join(known)}; write name:setting=value")
        values[key] = _mask(value) if key == "mask" else value if key == "weights" else _literal(value)
    return kind(keep, **values)


def takeable(
    methods: Iterable[str], keeps: Sequence[Keep], *, masked: bool = False
) -> tuple[list[tuple[str, Method]], list[str]]:
    """Every method at every budget that it takes, by its name as given, and of the other budgets why not.

    Args:
        methods: see `parse_pruner`.
        keeps: budgets of each.
        masked: every picture comes with its mask; else a method that goes by one must have one.

    Raises:
        ValueError, TypeError: an unknown method or setting, or a budget that no method takes.
    """
    found: list[tuple[str, Method]] = []
    reasons: dict[str, None] = {}
    for keep in keeps:
        check_value("keep", keep, OwnBudget())
    for name in methods:
        parse_pruner(name, 1.0)  # which every method takes: what is wrong with it is in its name or settings
        for keep in keeps:
            try:
                method = parse_pruner(name, keep)
                if not masked:
                    check_has_mask(method)
            except GpruneError as error:
                reasons[f"{name}: {error}"] = None
            else:
                found.append((name, method))
    return found, list(reasons)


def check_has_mask(method: Method) -> None:
    """Refuse a method that goes by a mask and has none, for pictures that come without.

    Raises:
        BadValue: it is such a method.
    """
    if "mask" in method.needs and getattr(method, "mask", None) is None:
        raise BadValue(
            f"{type(method).__name__} has no mask, and these pictures come without; give one for all, a picture that "
            f"is black outside: {method.name}:mask=mask.png"
        )


def seeded(method: Method, seeds: int) -> list[Method]:
    """A method that draws at random, with so many seeds from its own on; any other method once."""
    first = getattr(method, "seed", None)
    return [method] if first is None else [method.with_seed(first + i) for i in range(seeds)]


def _mask(path: str) -> Any:
    """A picture as a mask: bool [height, width], True where it is not black."""
    import numpy as np

    from .images import open_image

    return np.asarray(open_image(Path(path))).any(-1)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
