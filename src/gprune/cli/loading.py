"""Models by name, for commands."""

from __future__ import annotations

from typing import Any

from ..models import EMBEDDED
from .options import checking_input

__all__ = ["EMBEDDED", "config_of", "load_model"]


def load_model(name: str) -> tuple[Any, Any]:
    """See `gprune.models.load`; what cannot be used is the user's input."""
    from ..models import load

    with checking_input():
        return load(name)


def config_of(name: str, *others: str) -> Any:
    """See `gprune.models.read_config`; what cannot be used is the user's input."""
    from ..models import read_config

    with checking_input():
        return read_config(name, *others)
