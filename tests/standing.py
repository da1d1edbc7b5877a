"""Libraries that are not there: modules with just the names of a contract, to take some away from."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from inspect import Parameter, Signature
from types import ModuleType
from typing import Any

import pytest

import gprune.contract
from gprune.contract import Contract


class Host:
    """Stands in for the library of a contract, and fits it.

    Args:
        patch: puts the modules in, for the time of a test.
        contract: whose names there are.
    """

    def __init__(self, patch: pytest.MonkeyPatch, contract: Contract) -> None:
        self._patch = patch
        for name in contract.names:
            module, _, rest = name.partition(":")
            path, called, arguments = rest.partition("(")
            owner: Any = self._module(module)
            for part in path.split(".") if path else ():
                if part not in vars(owner):
                    setattr(owner, part, type(part, (), {}))
                owner = getattr(owner, part)
            if called:
                named = [each.strip() for each in arguments.rstrip(")").split(",")]
                self.shape(owner, *(each for each in named if each.isidentifier()))
        self.version(contract, "{}.{}".format(*contract.tested.lstrip("<>=").split(",")[0].split(".")) + ".99")

    def version(self, contract: Contract, number: str | None) -> None:
        """Install the library in this version, and no other name of it; None: no version is known."""
        gprune.contract.warn_once.cache_clear()

        def version(name: str) -> str:
            if name != contract.library or number is None:
                raise PackageNotFoundError(name)
            return number

        self._patch.setattr(gprune.contract, "version", version)

    def owner(self, name: str) -> tuple[Any, str]:
        """What holds a name of a contract, and the last part of the name."""
        module, _, rest = name.partition(":")
        *parts, last = rest.partition("(")[0].split(".")
        owner: Any = sys.modules[module]
        for part in parts:
            owner = getattr(owner, part)
        return owner, last

    @staticmethod
    def shape(function: Any, *arguments: str) -> None:
        """Give a function or class these arguments."""
        function.__signature__ = Signature([Parameter(each, Parameter.POSITIONAL_OR_KEYWORD) for each in arguments])

    def _module(self, name: str) -> ModuleType:
        parent, _, last = name.rpartition(".")
        module = sys.modules.get(name)
        if not getattr(module, "stands_in", False):
            module = ModuleType(name)
            module.__dict__.update(__path__=[], stands_in=True)
            self._patch.setitem(sys.modules, name, module)
        if parent:
            setattr(self._module(parent), last, module)
        assert module is not None
        return module
