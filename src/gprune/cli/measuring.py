"""What commands share that measure cells: their folder, what a model does not allow, how far they are, the table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .loading import EMBEDDED
from .options import WrongInput
from .progress import progress_bar

if TYPE_CHECKING:
    from ..evaluate.cells import Cell, Key
    from ..evaluate.items import Query
    from ..pruners import Method
    from ..scenes.scene import Split
    from ..tokens import Keep


def make_folder(folder: Path) -> Path:
    """The folder, made if it is not there; an error if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongInput(f"output {folder} cannot be made a folder ({error}); give another name") from error
    if not os.access(folder, os.W_OK):
        raise WrongInput(f"output {folder} cannot be written to; give another name")
    return folder


def scene_items(model: str, questions: list[str] | None, count: int, split: Split) -> list[Query]:
    """The first pictures of a split of the embedded benchmark, each with its own question unless others are given."""
    if model != EMBEDDED:
        raise WrongInput(
            f"no pictures are given to ask {model} about; accepted are a folder of pictures, a picture, and a JSONL "
            f"file; name one, of pictures such as you will use"
        )
    from ..scenes.benchmark import samples

    shown = samples(split, count)
    return [([each.picture], asked) for each in shown for asked in questions or [each.question.question]]


def keys_of(
    runs: Sequence[tuple[str, Method]], model: str, tasks: Sequence[str], *, seeds: int, limit: int | None
) -> list[Key]:
    """Of every task the unpruned model and each run; see `gprune.evaluate.runs.keys`."""
    from ..evaluate.runs import keys

    budgets: dict[str, list[Keep]] = {}
    for name, method in runs:
        budgets.setdefault(name, []).append(method.keep)
    wanted = [
        key for name, found in budgets.items() for key in keys(model, tasks, [name], found, seeds=seeds, limit=limit)
    ]
    return sorted({key.name: key for key in wanted}.values(), key=lambda key: tasks.index(key.task))


def possible_cells(wanted: Sequence[Key], refusal: Callable[[Key], str | None]) -> tuple[list[Key], list[str]]:
    """The cells that a model allows, and of the others why not; an error if it allows none that prunes."""
    from ..evaluate.cells import BASELINE

    possible, reasons = [], []
    for key in wanted:
        if reason := refusal(key):
            reasons.append(f"{key.method}: {reason}")
        else:
            possible.append(key)
    if reasons and all(key.method == BASELINE for key in possible):
        raise WrongInput(reasons[0])
    return possible, list(dict.fromkeys(reasons))


class Bars:
    """How many cells are measured, and how many documents of the one at hand, on standard error.

    Args:
        disable: whether to show nothing.
    """

    def __init__(self, *, disable: bool = False) -> None:
        # What is printed while a cell is measured is held back elsewhere.
        self._progress = progress_bar(disable=disable, redirect_stdout=False, redirect_stderr=False)
        self._cells = self._progress.add_task("cells")
        self._documents = self._progress.add_task("", visible=False)

    @contextmanager
    def shown(self, cells: int) -> Iterator[None]:
        """Show them, of so many cells, until the block ends."""
        self._progress.update(self._cells, total=cells)
        with self._progress:
            yield

    def started(self, key: Key) -> None:
        """A cell is begun."""
        self._progress.reset(self._documents, description=key.name, total=None, visible=True)

    def answered(self, done: int, total: int) -> None:
        """So many documents of it are answered."""
        self._progress.update(self._documents, completed=done, total=total)

    def say(self, text: str) -> None:
        """A line above them."""
        self._progress.console.print(text, highlight=False)

    def finished(self, cell: Cell) -> None:
        """A cell is there."""
        self._progress.advance(self._cells)
