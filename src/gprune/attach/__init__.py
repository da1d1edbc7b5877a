"""Puts a pruner on a transformers model and takes it off again."""

from __future__ import annotations

from ..errors import UnsupportedModel
from .report import ImageReport
from .run import Run, attach, refusal
from .verification import verify

__all__ = ["ImageReport", "Run", "UnsupportedModel", "attach", "refusal", "verify"]
