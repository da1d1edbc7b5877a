"""Training-free pruning of the visual tokens of multimodal LLMs, by graph (G-Prune) and by other methods.

with GPrune(keep=0.3)(model):
    model.generate(**inputs)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attach import ImageReport, Run, refusal, verify
    from .errors import AmbiguousRun, BadType, BadValue, GpruneError, UnfitSettings, UnsupportedModel
    from .evaluate.fidelity import fidelity
    from .pruners import (
        BAT,
        DART,
        EVS,
        MMR,
        PRUNERS,
        SCOPE,
        VTW,
        ApET,
        Auto,
        Background,
        CDPruner,
        Chain,
        ClsAttention,
        DecoderPruner,
        DivPrune,
        FastV,
        Foreground,
        GPrune,
        GraphCover,
        GraphVote,
        HiPrune,
        InsideTokens,
        L2Norm,
        Method,
        MMTok,
        NonFiniteFeatures,
        PixelDedup,
        PruMerge,
        Pruner,
        PyramidDrop,
        Random,
        ScorePruner,
        Selection,
        SetPruner,
        ToMe,
        Uniform,
        Unpruned,
        V2Drop,
        VisionZip,
        VisPruner,
        ZeroTPrune,
        get_pruner,
    )
    from .tokens import Cover, Keep, View, VisualTokens, cover, kept_count

__version__ = "0.1.0"

__all__ = [
    "BAT",
    "DART",
    "EVS",
    "MMR",
    "PRUNERS",
    "SCOPE",
    "VTW",
    "AmbiguousRun",
    "ApET",
    "Auto",
    "Background",
    "BadType",
    "BadValue",
    "CDPruner",
    "Chain",
    "ClsAttention",
    "Cover",
    "DecoderPruner",
    "DivPrune",
    "FastV",
    "Foreground",
    "GPrune",
    "GpruneError",
    "GraphCover",
    "GraphVote",
    "HiPrune",
    "ImageReport",
    "InsideTokens",
    "Keep",
    "L2Norm",
    "MMTok",
    "Method",
    "NonFiniteFeatures",
    "PixelDedup",
    "PruMerge",
    "Pruner",
    "PyramidDrop",
    "Random",
    "Run",
    "ScorePruner",
    "Selection",
    "SetPruner",
    "ToMe",
    "UnfitSettings",
    "Uniform",
    "Unpruned",
    "UnsupportedModel",
    "V2Drop",
    "View",
    "VisPruner",
    "VisionZip",
    "VisualTokens",
    "ZeroTPrune",
    "cover",
    "fidelity",
    "get_pruner",
    "kept_count",
    "refusal",
    "verify",
]


_ROOMS = {
    "attach": ("ImageReport", "Run", "refusal", "verify"),
    "evaluate.fidelity": ("fidelity",),
    "errors": ("AmbiguousRun", "BadType", "BadValue", "GpruneError", "UnfitSettings", "UnsupportedModel"),
    "tokens": ("Cover", "Keep", "View", "VisualTokens", "cover", "kept_count"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch alone takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = next((room for room, names in _ROOMS.items() if name in names), "pruners")
    return getattr(import_module(f".{room}", __name__), name)
