"""How far a command has come."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


def progress_bar(**settings: Any) -> Progress:
    """Bars on standard error, each with what is done, how much of it, and the time that the rest will take.

    Args:
        settings: of `rich.progress.Progress`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # This very stream, wherever what others print goes meanwhile.
    return Progress(*columns, console=Console(file=sys.stderr), **settings)
