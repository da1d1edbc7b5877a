"""Training-free pruning of the visual tokens of multimodal LLMs, by graph (G-Prune) and by other methods.

with GPrune(keep=0.3)(model):
    model.generate(**inputs)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attach import ImageReport, Run, UnsupportedModel
    from .pruners import (
        PRUNERS,
        GPrune,
        L2Norm,
        NonFiniteFeatures,
        Pruner,
        Random,
        ScorePruner,
        Selection,
        SetPruner,
        Uniform,
        get_pruner,
    )
    from .tokens import Keep, View, VisualTokens, kept_count

__version__ = "0.1.0"

__all__ = [
    "PRUNERS",
    "GPrune",
    "ImageReport",
    "Keep",
    "L2Norm",
    "NonFiniteFeatures",
    "Pruner",
    "Random",
    "Run",
    "ScorePruner",
    "Selection",
    "SetPruner",
    "Uniform",
    "UnsupportedModel",
    "View",
    "VisualTokens",
    "get_pruner",
    "kept_count",
]


_ROOMS = {
    "attach": ("ImageReport", "Run", "UnsupportedModel"),
    "tokens": ("Keep", "View", "VisualTokens", "kept_count"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch alone takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = next((room for room, names in _ROOMS.items() if name in names), "pruners")
    return getattr(import_module(f".{room}", __name__), name)
