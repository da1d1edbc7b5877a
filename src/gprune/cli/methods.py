"""`gprune methods`: every method, where it acts, what it needs, its source and the families it goes on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .options import AsJson, read_pruners
from .printing import print_json, print_table

if TYPE_CHECKING:
    from ..pruners import Method


def methods(as_json: AsJson = False) -> None:
    """List the methods.

    Example: `gprune methods --json`
    """
    from ..families.table import families_of

    rows: list[dict[str, Any]] = [
        {
            "method": name,
            "acts": method.acts,
            "needs": list(method.needs),
            "source": _source(method),
            "families": families_of(method),
        }
        for name, method in read_pruners("all", "0.3", masked=True)
    ]
    if as_json:
        print_json(rows)
    else:
        columns = ("method", "acts", "needs", "arXiv", "families")
        caption = "families: how many model types; --json names them. How each method chooses: docs/methods.md."
        print_table(columns, [_cells(row) for row in rows], caption)


def _source(method: Method) -> str | None:
    found = re.search(r"arXiv (\d{4}\.\d{5})", method.__doc__ or "")
    return found and found[1]


def _cells(row: dict[str, Any]) -> list[str]:
    return [row["method"], row["acts"], ", ".join(row["needs"]), row["source"] or "", str(len(row["families"]))]
