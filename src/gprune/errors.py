"""What gprune raises on purpose."""

from __future__ import annotations


class GpruneError(Exception):
    """The root of all errors that gprune raises on purpose; each says what was given, what is accepted, what to do."""


class BadValue(GpruneError, ValueError):
    """A value that is not accepted: a setting out of its range, tensors that do not fit together."""


class BadType(GpruneError, TypeError):
    """A value of a type that is not accepted."""


class UnsupportedModel(GpruneError, TypeError):
    """gprune cannot prune this model, or not with the installed version of transformers."""


class UnfitSettings(GpruneError, ValueError):
    """The settings of a method do not fit a model, such as a layer that its LLM does not have."""


class AmbiguousRun(GpruneError, RuntimeError):
    """Several threads prune a model, and it is called by one that has attached nothing, so no run can be meant."""


class NonFiniteFeatures(GpruneError, ValueError):
    """The features of an image contain NaN or Inf, so no ranking of its tokens means anything."""


class Diverged(GpruneError, ArithmeticError):
    """A loss became NaN or Inf while something was trained."""
