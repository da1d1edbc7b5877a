"""Which families a method goes on."""

from __future__ import annotations

from ..pruners import Method
from ..pruners.decoder import DecoderPruner
from ..pruners.tome import ToMe
from . import decoder, merging
from .layouts import LAYOUTS
from .signals import FROM_TOWER, SOURCES
from .views import unordered


def families_of(method: type[Method]) -> list[str]:
    """The model types that a method goes on with its default settings, sorted.

    A checkpoint of one of them may still be refused, for its attention or the kind of its vision tower.
    """
    if issubclass(method, DecoderPruner):
        return sorted(decoder.FAMILIES)
    if issubclass(method, ToMe):
        return sorted(merging.PARTS)
    if set(method.needs) & set(FROM_TOWER):
        return sorted(SOURCES)
    if "place" in method.needs:
        return sorted(
            name for name, layout in LAYOUTS.items() if layout.joins is None and layout.views is not unordered
        )
    return sorted(LAYOUTS)
