"""Puts a pruner on a transformers model and takes it off again."""

from __future__ import annotations

from .report import ImageReport
from .run import Run, attach
from .support import UnsupportedModel

__all__ = ["ImageReport", "Run", "UnsupportedModel", "attach"]
