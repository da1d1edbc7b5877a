"""`gprune scenes`: the embedded benchmark, and sample pictures of it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .loading import EMBEDDED
from .measuring import Bars, keys_of, make_folder, possible_cells
from .options import Keeps, Methods, Model, WrongInput, checking_input, read_runs, say_left_out
from .printing import print_json, print_markdown


def scenes(
    method: Methods = "gprune,random,uniform,l2norm",
    keep: Keeps = "0.5,0.3,0.1",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="So many first questions, all 2,100 if left out; the categories take turns."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of a method that draws at random.")] = 3,
    against: Annotated[
        str, typer.Option(help="The method that the others are compared with, question by question, at equal keep.")
    ] = "none",
    model: Model = EMBEDDED,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 32,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Write so many test pictures and questions instead.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the results; what is finished there is not run again."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print cells, or samples, as JSON, one in each line, and nothing else.")
    ] = False,
) -> None:
    """Measure methods on the embedded benchmark: accuracy per category, beside the unpruned model.

    Every method and ratio is a file in OUTPUT/cells; stopped and called again, it goes on with the next one.

    Example: `gprune scenes --method gprune,random --keep 0.5,0.3 --limit 140`
    """
    if sample is not None:
        return _write_sample(sample, output, as_json)
    from ..attach import verify
    from ..evaluate.cells import BASELINE, load_cell
    from ..evaluate.embedded import Embedded
    from ..evaluate.runs import measure_cells
    from ..evaluate.tables import SCENES, markdown
    from ..scenes.benchmark import mixed_inputs

    runs, untaken = read_runs(method, keep, masked=True)
    names = list(dict.fromkeys(name for name, _ in runs))
    if against not in (BASELINE, *names):
        raise WrongInput(f"--against {against}: it is not measured; give one of {', '.join((BASELINE, *names))}")
    with checking_input():
        wanted = keys_of(runs, model, [SCENES], seeds=seeds, limit=limit)
    folder = None if output is None else make_folder(output) / "cells"
    bars = Bars()
    benchmark = Embedded(model, batch_size, bars.answered)
    with checking_input():
        if folder is not None:
            for key in wanted:
                load_cell(key, folder)
        net, processor = benchmark.loaded
    wanted, left_out = possible_cells(wanted, benchmark.refusal)
    say_left_out(left_out)
    left_out = list(dict.fromkeys([*untaken, *left_out]))
    verify(net, mixed_inputs(net, processor))
    with bars.shown(len(wanted)):
        cells = measure_cells(wanted, folder, benchmark.measure, started=bars.started, finished=bars.finished)
    table = markdown(cells, left_out, against)
    if output is not None:
        (output / "table.md").write_text(table)
    if as_json:
        print_json(asdict(cell) for cell in cells)
    else:
        print_markdown(table)


def _write_sample(count: int, folder: Path | None, as_json: bool) -> None:
    from ..scenes.benchmark import samples

    if folder is None:
        raise WrongInput("--sample needs a folder for its pictures; add -o FOLDER")
    make_folder(folder)
    asked = []
    for each in samples("test", count):
        name = f"{each.index:03d}.png"
        each.picture.save(folder / name)
        asked.append({"picture": name, **vars(each.question)})
    (folder / "questions.json").write_text(json.dumps(asked, indent=1) + "\n")
    if as_json:
        print_json(asked)
    print(f"wrote {count} pictures and questions.json to {folder}", file=sys.stderr)
