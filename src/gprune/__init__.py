"""Training-free pruning of the visual tokens of multimodal LLMs, by graph (G-Prune) and by other methods.

with GPrune(keep=0.3)(model):
    model.generate(**inputs)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attach import ImageReport, Run, refusal, verify
    from .errors import AmbiguousRun, BadType, BadValue, Diverged, GpruneError, UnfitSettings, UnsupportedModel
    from .evaluate.fidelity import fidelity
    from .fitting import FitSettings, Fitted, fit
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
        DecoderMerger,
        DecoderPruner,
        DivPrune,
        EvoViT,
        FastV,
        FastVID,
        Foreground,
        GPrune,
        GraphCover,
        GraphVote,
        HiPrune,
        InsideTokens,
        L2Norm,
        Learned,
        LLaVAScissor,
        Method,
        MMTok,
        NonFiniteFeatures,
        PixelDedup,
        PruMerge,
        Pruner,
        PuMer,
        PyramidDrop,
        Random,
        ScorePruner,
        Selection,
        SetPruner,
        SparseVLM,
        ToMe,
        Uniform,
        Unpruned,
        V2Drop,
        VidCom2,
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
    "DecoderMerger",
    "DecoderPruner",
    "DivPrune",
    "Diverged",
    "EvoViT",
    "FastV",
    "FastVID",
    "FitSettings",
    "Fitted",
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
    "LLaVAScissor",
    "Learned",
    "MMTok",
    "Method",
    "NonFiniteFeatures",
    "PixelDedup",
    "PruMerge",
    "Pruner",
    "PuMer",
    "PyramidDrop",
    "Random",
    "Run",
    "ScorePruner",
    "Selection",
    "SetPruner",
    "SparseVLM",
    "ToMe",
    "UnfitSettings",
    "Uniform",
    "Unpruned",
    "UnsupportedModel",
    "V2Drop",
    "VidCom2",
    "View",
    "VisPruner",
    "VisionZip",
    "VisualTokens",
    "ZeroTPrune",
    "cover",
    "fidelity",
    "fit",
    "get_pruner",
    "kept_count",
    "refusal",
    "verify",
]


_ROOMS = {
    "attach": ("ImageReport", "Run", "refusal", "verify"),
    "evaluate.fidelity": ("fidelity",),
    "fitting": ("FitSettings", "Fitted", "fit"),
    "errors": ("AmbiguousRun", "BadType", "BadValue", "Diverged", "GpruneError", "UnfitSettings", "UnsupportedModel"),
    "tokens": ("Cover", "Keep", "View", "VisualTokens", "cover", "kept_count"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch alone takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = next((room for room, names in _ROOMS.items() if name in names), "pruners")
    return getattr(import_module(f".{room}", __name__), name)
