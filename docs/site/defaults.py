"""Signatures show the default of a setting, `similarity=0.5`, where the code says `setting(0.5, Between(-1, 1))`."""

from __future__ import annotations

from typing import Any

from griffe import Attribute, ExprCall, Extension


class Defaults(Extension):
    """Puts the default in the place of `setting(default, accepted)`, before a class gets its signature from it."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Look at one attribute of a class."""
        if isinstance(attr.value, ExprCall) and attr.value.canonical_path.endswith("setting"):
            attr.value = attr.value.arguments[0]
