"""Methods of other packages: entry points of the group `gprune.methods`, a name and the class that it stands for."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from .errors import BadValue

GROUP = "gprune.methods"


def plugin_names() -> list[str]:
    """The names under which other packages bring methods, sorted; nothing of theirs is imported."""
    return sorted(entry_points(group=GROUP).names)


def load_plugin(name: str) -> Any:
    """What a package brings under a name.

    Raises:
        BadValue: it cannot be imported, or several packages bring the name.
    """
    first, *others = entry_points(group=GROUP, name=name)
    if others:
        values = ", ".join(each.value for each in (first, *others))
        raise BadValue(
            f"method {name!r} is brought by several packages ({values}); accepted is one; uninstall the others"
        )
    try:
        return first.load()
    except Exception as error:  # whatever a package of somebody else does when it is imported
        raise BadValue(
            f"method {name!r} of another package cannot be imported from {first.value} ({type(error).__name__}: "
            f"{error}); accepted is module:class; mend or uninstall that package"
        ) from error
