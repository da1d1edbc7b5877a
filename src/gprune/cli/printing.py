"""What commands print: JSON for programs, tables that no width of a terminal cuts, plain rows where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ..aligned import aligned

_BESIDE = 3
"""What a column takes beside its words: a line and two blanks."""


def print_json(rows: Iterable[dict[str, Any]]) -> None:
    """Rows, alone on standard output, an object in each line; a budget that is no number as it is written."""
    for row in rows:
        print(json.dumps(row, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """A table for people: the first column flush left, numbers flush right; no cell is ever cut.

    On a terminal cells fold between words, or, where it is too narrow for that, every row is a list of its cells. In a
    file or a pipe every row is a line, however long.
    """
    from rich.console import Console

    console = Console(highlight=False)
    lines = [columns, *rows]
    room = console.width - _BESIDE * len(columns) - 1
    if not console.is_terminal:
        print(aligned(lines), end="")
    elif (widths := _widths(lines, room)) is None:
        print("\n".join(_listed(columns, row) for row in rows), end="")
    else:
        return console.print(_boxed(lines, widths, caption))
    if caption:
        print(f"\n{caption}")


def print_markdown(text: str) -> None:
    """Markdown as it is in a file or a pipe; on a terminal its tables by `print_table`."""
    from rich.console import Console

    if not Console().is_terminal:
        return print(text, end="")
    table: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("| "):
            table.append([cell.strip() for cell in line.strip()[2:-2].split(" | ")])
            continue
        if table:
            print_table(table[0], table[2:])
            table = []
        print(line)


def _listed(columns: Sequence[str], row: Sequence[str]) -> str:
    """The first cell of a row, and below it the others that say something, each with its column."""
    width = max(map(len, columns[1:]), default=0)
    cells = zip(columns[1:], row[1:], strict=True)
    return "".join([f"{row[0]}\n", *(f"  {column.ljust(width)}  {cell}\n" for column, cell in cells if cell)])


def _widths(lines: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Of every column, so that they fit and the widest fold; None where that would break a word."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    words = [max(len(word) for cell in cells for word in cell.split()) for cells in zip(*lines, strict=True)]
    while sum(widths) > room:
        wide = [i for i, width in enumerate(widths) if width > words[i]]
        if not wide:
            return None
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _boxed(lines: Sequence[Sequence[str]], widths: Sequence[int], caption: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(caption=caption and Text(caption))
    for i, (column, width) in enumerate(zip(lines[0], widths, strict=True)):
        table.add_column(column, justify="right" if i else "left", width=width)
    for row in lines[1:]:
        table.add_row(*map(Text, row))
    return table
