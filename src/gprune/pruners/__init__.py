"""Pruning methods by name."""

from __future__ import annotations

from ..errors import BadValue, NonFiniteFeatures
from .apet import ApET
from .auto import Auto
from .base import Method, Pruner, ScorePruner, Selection, SetPruner, Unpruned
from .bat import BAT
from .cdpruner import CDPruner
from .chain import Chain
from .clsattention import ClsAttention
from .dart import DART
from .decoder import DecoderMerger, DecoderPruner, InsideTokens
from .divprune import DivPrune
from .evovit import EvoViT
from .evs import EVS
from .fastv import FastV
from .fastvid import FastVID
from .gprune import GPrune
from .graphcover import GraphCover
from .graphvote import GraphVote
from .hiprune import HiPrune
from .l2norm import L2Norm
from .learned import Learned
from .llavascissor import LLaVAScissor
from .masked import Background, Foreground
from .mmr import MMR
from .mmtok import MMTok
from .pixeldedup import PixelDedup
from .prumerge import PruMerge
from .pumer import PuMer
from .pyramiddrop import PyramidDrop
from .random import Random
from .scope import SCOPE
from .sparsevlm import SparseVLM
from .tome import ToMe
from .uniform import Uniform
from .v2drop import V2Drop
from .vidcom2 import VidCom2
from .visionzip import VisionZip
from .vispruner import VisPruner
from .vtw import VTW
from .zerotprune import ZeroTPrune

PRUNERS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        GPrune,
        Random,
        Uniform,
        L2Norm,
        DivPrune,
        GraphCover,
        GraphVote,
        Auto,
        MMR,
        ApET,
        Foreground,
        Background,
        ClsAttention,
        SCOPE,
        VisPruner,
        HiPrune,
        VisionZip,
        PruMerge,
        BAT,
        ZeroTPrune,
        CDPruner,
        MMTok,
        Learned,
        EVS,
        VidCom2,
        FastVID,
        LLaVAScissor,
        PixelDedup,
        ToMe,
        EvoViT,
        FastV,
        VTW,
        PyramidDrop,
        DART,
        V2Drop,
        SparseVLM,
        PuMer,
    )
}


def get_pruner(name: str) -> type[Method]:
    """The class of the method with this command-line name.

    Raises:
        BadValue: no method has the name; lists those there are.
    """
    if name not in PRUNERS:
        raise BadValue(f"method {name!r} is unknown; methods are {', '.join(PRUNERS)}; pass one of these names")
    return PRUNERS[name]


__all__ = [
    "BAT",
    "DART",
    "EVS",
    "MMR",
    "PRUNERS",
    "SCOPE",
    "VTW",
    "ApET",
    "Auto",
    "Background",
    "CDPruner",
    "Chain",
    "ClsAttention",
    "DecoderMerger",
    "DecoderPruner",
    "DivPrune",
    "EvoViT",
    "FastV",
    "FastVID",
    "Foreground",
    "GPrune",
    "GraphCover",
    "GraphVote",
    "HiPrune",
    "InsideTokens",
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
    "ScorePruner",
    "Selection",
    "SetPruner",
    "SparseVLM",
    "ToMe",
    "Uniform",
    "Unpruned",
    "V2Drop",
    "VidCom2",
    "VisPruner",
    "VisionZip",
    "ZeroTPrune",
    "get_pruner",
]
