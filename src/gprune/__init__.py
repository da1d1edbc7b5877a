"""Training-free pruning of the visual tokens of multimodal LLMs, by graph (G-Prune) and by other methods.

model, processor = load("embedded")  # or the hub id or folder of a checkpoint
inputs = build_inputs(model, processor, [([open_image("photo.jpg")], "What is shown here?")])
with GPrune(keep=0.3)(model) as run:
    output = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
print(run.images[0])  # what was kept; run.images[0].show(picture) draws it
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attach import ImageReport, Run, refusal, verify
    from .catalog import methods
    from .errors import AmbiguousRun, BadType, BadValue, Diverged, GpruneError, UnfitSettings, UnsupportedModel
    from .evaluate.fidelity import fidelity
    from .fitting import FitSettings, Fitted, fit
    from .images import open_image
    from .models import load
    from .prompt import build_inputs
    from .pruners import *
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
    "build_inputs",
    "cover",
    "fidelity",
    "fit",
    "get_pruner",
    "kept_count",
    "load",
    "methods",
    "open_image",
    "refusal",
    "verify",
]


_ROOMS = {
    "attach": ("ImageReport", "Run", "refusal", "verify"),
    "catalog": ("methods",),
    "evaluate.fidelity": ("fidelity",),
    "fitting": ("FitSettings", "Fitted", "fit"),
    "images": ("open_image",),
    "models": ("load",),
    "prompt": ("build_inputs",),
    "errors": ("AmbiguousRun", "BadType", "BadValue", "Diverged", "GpruneError", "UnfitSettings", "UnsupportedModel"),
    "tokens": ("Cover", "Keep", "View", "VisualTokens", "cover", "kept_count"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch alone takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = next((room for room, names in _ROOMS.items() if name in names), "pruners")
    return getattr(import_module(f".{room}", __name__), name)


def __dir__() -> list[str]:
    """What there is, imported or not, for `dir`, `help` and completion."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
