"""What gprune raises on purpose."""

from __future__ import annotations


class GpruneError(Exception):
    """The root of all errors that gprune raises on purpose; each says what was given, what is accepted, what to do."""


class UnsupportedModel(GpruneError, TypeError):
    """gprune cannot prune this model, or not with the installed version of transformers."""
