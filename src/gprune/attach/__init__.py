"""Puts a pruner on a transformers model and takes it off again. Other rooms import from here alone."""

from __future__ import annotations

from ..errors import UnsupportedModel
from .llm import uneven_attention
from .preview import encoded, reports_of, visual_tokens
from .report import ImageReport
from .run import Run, attach, refusal
from .support import family_of, unwrapped
from .tower_reading import attention_received, middle_of
from .verification import verify

__all__ = [
    "ImageReport",
    "Run",
    "UnsupportedModel",
    "attach",
    "attention_received",
    "encoded",
    "family_of",
    "middle_of",
    "refusal",
    "reports_of",
    "uneven_attention",
    "unwrapped",
    "verify",
    "visual_tokens",
]
