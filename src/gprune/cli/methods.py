"""`gprune methods`: every method, where it acts, what it needs, its source and the families it goes on."""

from __future__ import annotations

from .options import AsJson
from .printing import print_json, print_table


def methods(as_json: AsJson = False) -> None:
    """List the methods.

    Example: `gprune methods --json`
    """
    from ..catalog import methods as listed

    table = listed()
    if as_json:
        print_json(table)
    else:
        caption = "families: how many model types; --json names them. How each method chooses: docs/methods.md."
        print_table(table.columns, table.cells, caption)
