"""The matrix that integration tests cross: a tiny, randomly initialised model of the real class per family.

Layouts are worked out from the sizes of the images, never read from the model's features.
"""

from __future__ import annotations

from .base import BATCH, VIDEOS, Family, Inputs, Media, Size, Video, is_video, is_visual, prompt_of
from .grids import GRIDS
from .newline import NEWLINE
from .parts import IMAGE, VIDEO
from .square import SQUARE
from .tiled import TILED

FAMILIES: dict[str, Family] = {family.name: family for family in (*SQUARE, *NEWLINE, *GRIDS, *TILED)}

__all__ = [
    "BATCH",
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
