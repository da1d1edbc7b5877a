"""`gprune eval`: methods on benchmarks, by lmms-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .loading import EMBEDDED
from .measuring import Bars, keys_of, make_folder, possible_cells
from .options import Keeps, Methods, Model, checking_input, read_list, read_runs, say_left_out
from .printing import print_markdown

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
    runs, untaken = read_runs(method, keep)
    with checking_input():
        from ..evaluate.cells import load_cell
        from ..evaluate.harness import Harness, Tasks, run_together
        from ..evaluate.tables import markdown

        listed = read_list(tasks or ("scenes" if model == EMBEDDED else PAPER_TASKS), "tasks", str)
        wanted = keys_of(runs, model, listed, seeds=seeds, limit=limit)
        found = Tasks(include_path or ())
        for task in listed:
            found.check(task, limit)
    cells_folder = make_folder(output) / "cells"
    with checking_input():
        cells = [cell for key in wanted if (cell := load_cell(key, cells_folder)) is not None]
    from ..evaluate.processes import is_first

    left_out: list[str] = []
    if len(cells) < len(wanted):
        bars = Bars(disable=not is_first())
        with checking_input():
            harness = Harness(
                model,
                batch_size=batch_size,
                log_samples=output / "samples" if log_samples else None,
                tasks=found,
                answered=bars.answered,
            )
        wanted, left_out = possible_cells(wanted, harness.refusal)
        say_left_out(left_out if is_first() else [])
        with bars.shown(len(wanted)):
            cells = run_together(harness, wanted, cells_folder, started=bars.started, finished=bars.finished)
    if is_first():
        table = markdown(cells, list(dict.fromkeys([*untaken, *left_out])))
        (output / "table.md").write_text(table)
        print_markdown(table)
