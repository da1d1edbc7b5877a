"""What a room of gprune relies on in the library it is named after, beyond what that library documents.

Such names change without notice. They are listed in the room's `host.py`, and checked when the room is entered: what is
missing or shaped otherwise is refused by name, before anything can be silently wrong.
"""

from __future__ import annotations

import inspect
import multiprocessing
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.specifiers import SpecifierSet

from .errors import GpruneError

SHOWN = 3
"""Names in an error; of the others it says how many there are."""


class UnsupportedHost(GpruneError, ImportError):
    """An installed library lacks a name that gprune relies on, or has it shaped otherwise."""


@dataclass(frozen=True)
class Contract:
    """Names of a library that gprune relies on.

    Args:
        library: its name as it is installed by.
        tested: the versions that gprune was tested with, as pip writes them: ">=0.32,<0.33".
        names: each `module`, `module:name`, `module:name.name` or, of what is called or overridden,
            `module:name(argument, argument)`: these arguments it has to take, and may require no others, unless the
            last of them is `...`, as where fields of an object are only read.
        also: other names that the library is installed by.
        relying: who relies on it.
    """

    library: str
    tested: str
    names: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    relying: str = "gprune"

    def check(self) -> None:
        """Warn of a version that was not tested.

        Raises:
            UnsupportedHost: a name is missing or shaped otherwise.
        """
        if faults := list(filter(None, map(_fault, self.names))):
            raise self.refusal(faults)
        number = self.version
        if number is None or not SpecifierSet(self.tested).contains(number, prereleases=True):
            warn_once(
                f"{self._installed} is installed, but gprune was tested with {self.library}{self.tested}; all names "
                f"that it relies on are there; if something goes wrong, {self._remedy}"
            )

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Check before the imports in the block, which may then be those of the names."""
        self.check()
        yield

    def refusal(self, faults: Iterable[str]) -> UnsupportedHost:
        """The error about names that are missing or shaped otherwise, each said in a few words."""
        faults = list(dict.fromkeys(faults))
        more = [f"{len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        return UnsupportedHost(
            f"{self._installed} is installed, where {self.relying} relies on what is not there: "
            f"{'; '.join(faults[:SHOWN] + more)}. Tested was {self.library}{self.tested}: {self._remedy}"
        )

    @property
    def version(self) -> str | None:
        """The version that is installed; None if there is none, or none that is known."""
        for name in (self.library, *self.also):
            try:
                return version(name)
            except PackageNotFoundError:
                continue
        return None

    @property
    def _installed(self) -> str:
        return f"{self.library} {self.version}" if self.version else f"no {self.library} of a known version"

    @property
    def _remedy(self) -> str:
        return f"pip install '{self.library}{self.tested}'"


def _fault(name: str) -> str | None:
    """What is wrong with a name, in a few words; None if nothing is."""
    module, _, rest = name.partition(":")
    path, called, arguments = rest.partition("(")
    try:
        value: Any = import_module(module)
    except ModuleNotFoundError as error:
        own = error.name is not None and f"{module}.".startswith(f"{error.name}.")
        return f"{module} is missing" if own else f"{module} cannot be imported ({error})"
    except (ImportError, AttributeError) as error:
        return f"{module} cannot be imported ({error})"
    owner = value
    for part in path.split(".") if path else ():
        owner, value = value, getattr(value, part, _MISSING)
        if value is _MISSING:
            return f"{module}:{path} is missing"
    if not called:
        return None
    wanted = [argument.strip() for argument in arguments.rstrip(")").split(",") if argument.strip()]
    return _misshapen(f"{module}:{path}", value, wanted, method=inspect.isclass(owner))


def _misshapen(name: str, function: Any, wanted: list[str], *, method: bool) -> str | None:
    """What is wrong with the arguments of a function, or of a method looked up on its class."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return f"{name} does not tell its arguments"
    if method and parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    kinds = {parameter.kind for parameter in parameters}
    taken = {parameter.name for parameter in parameters if parameter.kind not in _GATHERING}
    if lost := [each for each in wanted if each not in (*taken, _ANY) and inspect.Parameter.VAR_KEYWORD not in kinds]:
        return f"{name} takes no {', '.join(lost)}"
    required = [each.name for each in parameters if each.kind not in _GATHERING and each.default is each.empty]
    if new := [each for each in required if each not in wanted and _ANY not in wanted]:
        return f"{name} requires {', '.join(new)}"
    return None


_MISSING = object()
_ANY = "..."
_GATHERING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@cache
def warn_once(text: str) -> None:
    """Warn in the process that the user started, not in those that it starts."""
    if multiprocessing.parent_process() is None:
        warnings.warn(text, stacklevel=2)
