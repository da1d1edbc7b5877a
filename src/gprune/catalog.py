"""Every method with what a user chooses by.

PyTorch and transformers, whose import takes seconds, are not needed to list gprune's own: `methods.jsonl` has them,
written by `make methods`, and a test compares it with what the classes say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar

from .aligned import aligned
from .plugins import plugin_names

if TYPE_CHECKING:
    from .pruners import Method


class MethodTable(tuple[dict[str, Any], ...]):
    """Rows, a dictionary each, that show themselves as a table, in a notebook too; there `families` are counted."""

    __slots__ = ()

    columns: ClassVar = ("method", "acts", "needs", "arXiv", "families")

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """Of each row what is shown below `columns`."""
        return [
            (row["method"], row["acts"], ", ".join(row["needs"]), row["source"] or "", str(len(row["families"])))
            for row in self
        ]

    def __repr__(self) -> str:
        return aligned([self.columns, *self.cells]).rstrip("\n")

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in self.columns)
        rows = ("".join(f"<td>{escape(cell)}</td>" for cell in cells) for cells in self.cells)
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def methods() -> MethodTable:
    """Every method: gprune's own, then those of other packages.

    Returns:
        A row for each: "method", its name; "acts", where it drops visual tokens; "needs", what it must know beside the
        features of the tokens; "source", the arXiv number of its paper or None; "families", the model types that it
        goes on. What another package brings that cannot be used is left out, with a warning.
    """
    own = (files("gprune") / "methods.jsonl").read_text().splitlines()
    return MethodTable([*map(json.loads, own), *_of_others()])


def described(kinds: Iterable[Any]) -> list[dict[str, Any]]:
    """The rows of these classes."""
    from .families.table import families_of

    return [_row(kind(1.0), families_of(kind(1.0))) for kind in kinds]


def _row(method: Method, families: list[str]) -> dict[str, Any]:
    source = re.search(r"arXiv (\d{4}\.\d{5})", method.__doc__ or "")
    return {
        "method": method.name,
        "acts": method.acts,
        "needs": list(method.needs),
        "source": source and source[1],
        "families": families,
    }


def _of_others() -> list[dict[str, Any]]:
    if not plugin_names():
        return []
    from .pruners import PRUNERS, every_method

    return described(kind for name, kind in every_method().items() if name not in PRUNERS)


if __name__ == "__main__":
    from .pruners import PRUNERS

    for row in described(PRUNERS.values()):
        print(json.dumps(row))
