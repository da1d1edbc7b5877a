"""What the settings of a method accept: declared beside each, checked in one place."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from .errors import BadType, BadValue

_T = TypeVar("_T")


class Accepted(ABC):
    """What a setting accepts: `value in accepted`; `str(accepted)` says it in an error."""

    kinds: tuple[type, ...] = (int, float)
    """The types of its values; bool, which Python counts as int, only where it is named."""

    @abstractmethod
    def __contains__(self, value: Any) -> bool:
        """Whether a value of one of the `kinds` is accepted."""

    @abstractmethod
    def __str__(self) -> str: ...

    def finding(self, value: Any) -> str:
        """What is wrong with another value of these types."""
        return "is out of range"

    def remedy(self, value: Any, default: Any) -> str:
        """What to do instead."""
        return "leave it out" if default is None else f"leave it out for {default!r}"


@dataclass(frozen=True)
class Between(Accepted):
    """A number from `least` to `most`, both included."""

    least: float
    most: float

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a number in [{self.least}, {self.most}]"


@dataclass(frozen=True)
class Above(Accepted):
    """A finite number above `bound`."""

    bound: float

    def __contains__(self, value: float) -> bool:
        return self.bound < value < math.inf

    def __str__(self) -> str:
        return f"a finite number > {self.bound}"


@dataclass(frozen=True)
class Count(Accepted):
    """A whole number from `least` on, up to and including `most`."""

    least: int
    most: float = math.inf
    kinds = (int,)

    def __contains__(self, value: int) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"an int >= {self.least}" if self.most == math.inf else f"an int in [{self.least}, {self.most}]"


@dataclass(frozen=True)
class OneOf(Accepted):
    """One of these values."""

    values: tuple[Any, ...]

    @property
    def kinds(self) -> tuple[type, ...]:  # type: ignore[override]
        """The types of the values."""
        return tuple({type(value) for value in self.values})

    def __contains__(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return " or ".join(map(repr, self.values))

    def finding(self, value: Any) -> str:
        """Another word is unknown."""
        return "is unknown"


def setting(default: _T, accepted: Accepted) -> _T:
    """A dataclass field with what it accepts; None is accepted too where it is the default.

    `similarity: float = setting(0.5, Between(-1, 1))`
    """
    return field(default=default, metadata={"accepted": accepted})


def _plain(value: Any) -> Any:
    """The number of Python in a scalar of numpy or PyTorch; None for anything else."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else None


def check_settings(owner: Any) -> None:
    """Raise BadType or BadValue unless every `setting` of a dataclass's instance is accepted."""
    for each in fields(owner):
        value, accepted = getattr(owner, each.name), each.metadata.get("accepted")
        if accepted and not (value is None and each.default is None):
            check_value(each.name, value, accepted, each.default)


def check_value(name: str, value: Any, accepted: Accepted, default: Any = None) -> None:
    """Raise BadType or BadValue unless the value is accepted that users call `name`, and need not give."""
    advice = f"accepted is {accepted}; {accepted.remedy(value, default)}"
    counts = bool in accepted.kinds or not isinstance(value, bool)
    if not counts or not isinstance(value, accepted.kinds):
        kind = type(value).__name__
        if isinstance(plain := _plain(value), accepted.kinds):
            advice = f"accepted is {accepted}, of Python itself; pass {plain!r}, which .item() gives"
        raise BadType(f"{name}={value!r} is {'an' if kind == 'int' else 'a'} {kind}; {advice}")
    if value not in accepted:
        raise BadValue(f"{name}={value!r} {accepted.finding(value)}; {advice}")
