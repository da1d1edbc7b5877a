"""Training-free pruning of the visual tokens of multimodal LLMs, by graph (G-Prune) and by other methods.

with GPrune(keep=0.3)(model):
    model.generate(**inputs)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from .attach import ImageReport, Run, UnsupportedModel

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


def __getattr__(name: str) -> Any:
    """Import what needs transformers only when it is asked for."""
    if name in ("ImageReport", "Run", "UnsupportedModel"):
        from . import attach

        return getattr(attach, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
