"""Pruning methods by name."""

from __future__ import annotations

from .base import NonFiniteFeatures, Pruner, ScorePruner, Selection, SetPruner
from .gprune import GPrune
from .l2norm import L2Norm
from .random import Random
from .uniform import Uniform

PRUNERS: dict[str, type[Pruner]] = {method.name: method for method in (GPrune, Random, Uniform, L2Norm)}


def get_pruner(name: str) -> type[Pruner]:
    """The class of the method with this command-line name.

    Raises:
        ValueError: no method has the name; lists those there are.
    """
    if name not in PRUNERS:
        raise ValueError(f"method {name!r} is unknown; methods are {', '.join(PRUNERS)}; pass one of these names")
    return PRUNERS[name]


__all__ = [
    "PRUNERS",
    "GPrune",
    "L2Norm",
    "NonFiniteFeatures",
    "Pruner",
    "Random",
    "ScorePruner",
    "Selection",
    "SetPruner",
    "Uniform",
    "get_pruner",
]
