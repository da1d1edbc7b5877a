"""The matrix that integration tests cross: a tiny, randomly initialised model of the real class per family.

Layouts are worked out from the sizes of the images, never read from the model's features.
"""

from __future__ import annotations

import transformers
from packaging.version import Version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .base import BATCH, VIDEOS, Family, Inputs, Media, Size, Video, is_video, is_visual, prompt_of
from .grids import GRIDS
from .minicpm import MINICPM
from .molmo import MOLMO
from .mrope import MROPE
from .newline import NEWLINE
from .parts import IMAGE, VIDEO
from .square import SQUARE
from .tiled import TILED

SINCE = {
    "smolvlm": "5.21",
    "cosmos3_edge": "5.23",
    "paddleocr_vl": "5.23",
    "video_llava": "5.23",
    "exaone4_5": "5.24",
    "hyperclovax_vision_v2": "5.24",
    "qwen2_5_omni_thinker": "5.24",
    "qwen3_omni_moe_thinker": "5.24",
    "step3p7": "5.24",
}
"""The first transformers whose forward takes fewer visual tokens than an image has, if not the lowest supported."""

BROKEN = {"llama4": "5.24.0"}
"""The transformers in which a family does not work at all, with or without a pruner."""

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (*SQUARE, *NEWLINE, *GRIDS, *MROPE, *TILED, *MOLMO, *MINICPM)
    if family.name in CONFIG_MAPPING_NAMES
    and Version(transformers.__version__) >= Version(SINCE.get(family.name, "5.19"))
    and transformers.__version__ != BROKEN.get(family.name)
}
"""Those that the installed transformers has, in the pattern that can be pruned."""

__all__ = [
    "BATCH",
    "BROKEN",
    "FAMILIES",
    "IMAGE",
    "VIDEO",
    "VIDEOS",
    "Family",
    "Inputs",
    "Media",
    "Size",
    "Video",
    "is_video",
    "is_visual",
    "prompt_of",
]
