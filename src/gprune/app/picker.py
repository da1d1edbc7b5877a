"""The methods in groups, as a picker shows them: a few to begin with, the others by what they look at and where."""

from __future__ import annotations

from collections.abc import Sequence

from ..pruners import Auto, DivPrune, GPrune, GraphCover, GraphVote, Random
from ..pruners.base import Acts, Need
from ..spec import parse_pruner

BEGINNING = "Methods"
"""The group of `TO_BEGIN_WITH`."""
TO_BEGIN_WITH = tuple(method.name for method in (Auto, GraphCover, GraphVote, GPrune, DivPrune, Random))
"""What to begin with: what is recommended, the paper's method, and what it is measured against."""
ACTING: dict[Acts, str] = {
    "before the tower": "Before the vision tower",
    "in the tower": "In the vision tower",
    "in the LLM": "Inside the LLM",
}
SIGHTS: tuple[tuple[set[Need], str], ...] = (
    ({"question"}, "By the question"),
    ({"attention", "middle attention", "keys"}, "By what the vision tower attends to"),
)
"""Of methods before the LLM: by what they need."""
OTHERS = "By the features alone"


def method_groups(methods: Sequence[str]) -> dict[str, list[str]]:
    """The methods by the title of their group, `BEGINNING` first.

    Args:
        methods: names, with settings.
    """
    groups: dict[str, list[str]] = {title: [] for title in (BEGINNING, OTHERS, *(title for _, title in SIGHTS))}
    groups |= {title: [] for title in ACTING.values()}
    groups[BEGINNING] = [method for method in TO_BEGIN_WITH if method in methods]
    for method in methods:
        if method not in TO_BEGIN_WITH:
            groups[_title(method)].append(method)
    return {title: names for title, names in groups.items() if names}


def _title(method: str) -> str:
    pruner = parse_pruner(method, 1.0)
    if pruner.acts in ACTING:
        return ACTING[pruner.acts]
    return next((title for needs, title in SIGHTS if needs & set(pruner.needs)), OTHERS)
