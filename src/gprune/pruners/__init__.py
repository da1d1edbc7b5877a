"""Pruning methods by name."""

from __future__ import annotations

import re
import warnings
from inspect import isabstract
from typing import Any

from ..errors import BadValue, GpruneError, NonFiniteFeatures
from ..plugins import load_plugin, plugin_names
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


_RESERVED = {Unpruned.name, Chain.name, "all"}
"""What else has a meaning where the name of a method stands."""


def get_pruner(name: str) -> type[Method]:
    """The class of the method with this command-line name: gprune's own, or that of another package.

    Raises:
        BadValue: no method has the name; lists those there are. Or what another package brings is no method.
    """
    if name in PRUNERS:
        return PRUNERS[name]
    if name not in (brought := plugin_names()):
        known = ", ".join((*PRUNERS, *brought))
        raise BadValue(f"method {name!r} is unknown; methods are {known}; pass one of these names")
    return _of_plugin(name)


def every_method() -> dict[str, type[Method]]:
    """`PRUNERS`, then the methods of other packages by name; warns of what cannot be used, and leaves it out."""
    found = dict(PRUNERS)
    for name in plugin_names():
        try:
            found[name] = _of_plugin(name)
        except BadValue as error:
            warnings.warn(f"left out, {error}", stacklevel=2)
    return found


def _of_plugin(name: str) -> type[Method]:
    """The class that another package brings, which can be made of a budget alone and is known by that name."""
    if name in PRUNERS or name in _RESERVED:
        raise BadValue(
            f"the name {name!r} of a method of another package is gprune's own; that package must take another"
        )
    if not re.fullmatch(r"[\w-]+", name):
        raise BadValue(
            f"the name {name!r} of a method of another package cannot be; accepted are letters, digits, _ and -"
        )
    kind = load_plugin(name)
    if not isinstance(kind, type) or not issubclass(kind, Method) or isabstract(kind):
        raise BadValue(
            f"method {name!r} of another package is {kind!r}; accepted is a subclass of gprune.Method with all that is "
            f"abstract there; mend or uninstall that package"
        )
    if kind.name != name:
        raise BadValue(
            f"method {name!r} of another package is a class whose name is {kind.name!r}; accepted is the same name; "
            f'that package must write name = "{name}" in its class'
        )
    make: Any = kind
    try:
        make(1.0)
    except (GpruneError, TypeError, ValueError) as error:
        raise BadValue(
            f"method {name!r} of another package cannot be made by {kind.__name__}(1.0) ({error}); accepted is a class "
            f"whose settings all have defaults"
        ) from error
    return kind


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
    "every_method",
    "get_pruner",
]
