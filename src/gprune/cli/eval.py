"""`gprune eval`: methods on benchmarks, by lmms-eval."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .models import EMBEDDED
from .options import Keeps, Methods, Model, WrongInput, checking_input, make_folder, read_list, read_pruners
from .progress import progress_bar

if TYPE_CHECKING:
    from ..evaluate.cells import Cell, Key
    from ..evaluate.harness import Harness

PAPER_TASKS = "gqa,vqav2_val,mme,pope,mmbench_en_dev_static,chartqa,docvqa_val,textvqa_val"
"""The eight of the paper's Table 1."""


def evaluate(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the results; what is finished there is not run again.")
    ],
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, by their names in lmms-eval; left out: the eight of the paper's Table 1, or scenes "
            "for the model in the package."
        ),
    ] = None,
    method: Methods = "random,tome,fastv,gprune",
    keep: Keeps = "0.5,0.3,0.1",
    limit: Annotated[int | None, typer.Option(min=1, help="So many first documents of every task.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of a method that draws at random.")] = 1,
    model: Model = EMBEDDED,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents at once, in each process.")] = 1,
    log_samples: Annotated[
        bool, typer.Option("--log-samples", help="Write every document, prompt and answer to OUTPUT/samples.")
    ] = False,
    include_path: Annotated[
        list[Path] | None, typer.Option(exists=True, file_okay=False, help="Folder with further tasks of lmms-eval.")
    ] = None,
) -> None:
    """Measure methods at several ratios on benchmarks of lmms-eval, beside the unpruned model.

    Every task, method and ratio is a file in OUTPUT/cells; stopped and called again, it goes on with the next one.

    Example: `gprune eval --tasks scenes --method gprune,random --keep 0.5,0.3 --limit 70 -o results`
    """
    from ..spec import parse_keep

    names = list(dict.fromkeys(name for name, _ in read_pruners(method, keep)))
    with checking_input():
        from ..evaluate.cells import load
        from ..evaluate.harness import Harness, Tasks, run_together
        from ..evaluate.runs import keys
        from ..evaluate.tables import markdown

        listed = read_list(tasks or ("scenes" if model == EMBEDDED else PAPER_TASKS), "tasks", str)
        wanted = keys(model, listed, names, read_list(keep, "keep", parse_keep), seeds=seeds, limit=limit)
        found = Tasks(include_path or ())
        for task in listed:
            found.check(task, limit)
    cells_folder = make_folder(output) / "cells"
    with checking_input():
        cells = [cell for key in wanted if (cell := load(key, cells_folder)) is not None]
    if len(cells) < len(wanted):
        bars = Bars()
        with checking_input():
            harness = Harness(
                model,
                batch_size=batch_size,
                log_samples=output / "samples" if log_samples else None,
                tasks=found,
                answered=bars.answered,
            )
        wanted = _possible(harness, wanted)
        with bars.shown(len(wanted)):
            cells = run_together(harness, wanted, cells_folder, started=bars.started, finished=bars.finished)
    from ..evaluate.processes import is_first

    if is_first():
        table = markdown(cells)
        (output / "table.md").write_text(table)
        print(table, end="")


def _possible(harness: Harness, wanted: Sequence[Key]) -> list[Key]:
    """Those that this model allows; of the others it is said why not, and it is an error if they are all."""
    from ..evaluate.cells import BASELINE
    from ..evaluate.processes import is_first

    reasons: dict[tuple[str, str], str] = {}
    possible = []
    for key in wanted:
        if reason := harness.refusal(key):
            reasons[key.method, str(key.keep)] = f"{key.method}: {reason}"
        else:
            possible.append(key)
    if reasons and all(key.method == BASELINE for key in possible):
        raise WrongInput(next(iter(reasons.values())))
    for reason in reasons.values() if is_first() else ():
        print(f"gprune: left out, {reason}", file=sys.stderr)
    return possible


class Bars:
    """How many cells are measured, and how many documents of the one at hand, on standard error."""

    def __init__(self) -> None:
        from ..evaluate.processes import is_first

        # What is printed while a cell is measured is held back elsewhere.
        self._progress = progress_bar(disable=not is_first(), redirect_stdout=False, redirect_stderr=False)
        self._cells = self._progress.add_task("cells")
        self._documents = self._progress.add_task("", visible=False)

    @contextmanager
    def shown(self, cells: int) -> Iterator[None]:
        """Show them, of so many cells, until the block ends."""
        self._progress.update(self._cells, total=cells)
        with self._progress:
            yield

    def started(self, key: Key) -> None:
        self._progress.reset(self._documents, description=key.name, total=None, visible=True)

    def answered(self, done: int, total: int) -> None:
        self._progress.update(self._documents, completed=done, total=total)

    def finished(self, cell: Cell) -> None:
        self._progress.advance(self._cells)
