"""Trains the scorer of `Learned` on a model's own answers. Other rooms import from here alone."""

from __future__ import annotations

from .fit_loop import Fitted, fit
from .lessons import FitSettings

__all__ = ["FitSettings", "Fitted", "fit"]
