"""`gprune batch`: one question about each of many pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .loading import EMBEDDED
from .options import RECOMMENDED, AsJson, Model, WrongInput, checking_input, read_runs
from .printing import print_json, print_table
from .progress import progress_bar

if TYPE_CHECKING:
    from ..batch import Engine, Progress, Summary


def batch(
    input: Annotated[
        str,
        typer.Argument(
            help="Folder of pictures, glob in quotes, or Parquet or JSONL files with an image (path or bytes) and a "
            "question in each row; a path, or a URI that pyarrow reads.",
            metavar="INPUT",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of Parquet parts; rows that are done are not done again.")
    ],
    question: Annotated[str | None, typer.Option(help="Asked of every picture that brings none of its own.")] = None,
    model: Model = EMBEDDED,
    method: Annotated[
        str | None,
        typer.Option(help="One method, settings after a colon: `gprune:init=ones`; auto if left out."),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="0.3 is a ratio, 100 a number of tokens per image; if left out 0.3, or what the server has."),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="Ask a server that speaks OpenAI's protocol, http://HOST:PORT/v1, instead of loading the model; "
            "the method is the server's own."
        ),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Workers, each with the model; left out: one for each GPU, or one.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once, in each worker.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 128,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, HOST:PORT or auto; left out: processes of this machine.")
    ] = None,
    image_column: Annotated[str, typer.Option(help="Of tables: the picture's path or bytes.")] = "image",
    question_column: Annotated[str, typer.Option(help="Of tables: the question.")] = "question",
    id_column: Annotated[
        str | None, typer.Option(help="Of tables: an id of the row; left out: the file and the number of the row.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that all files of pictures have to lie below; for tables of people you do not know."),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pictures with more pixels, width times height, are rows with an error; left out: 40 million."
        ),
    ] = None,
    part_rows: Annotated[int, typer.Option(min=1, help="Rows of a part: so many are done again after a crash.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Ask a question about each of many pictures, on one machine or a cluster; called again, it goes on where it was.

    Example: `gprune batch photos/ -o answers.parquet --question "what color is the star?" --keep 0.3 --actors 2`
    """
    if question is not None and not question.strip():
        raise WrongInput("the question is empty; accepted is any text; write it after --question, in quotes")
    if server is not None and method is not None:
        raise WrongInput(f"--method {method} cannot be chosen for a server; start the server with it, and leave it out")
    runs, _ = read_runs(method or RECOMMENDED, keep or "0.3")
    if len(runs) != 1:
        raise WrongInput(f"--method {method} --keep {keep} are {len(runs)} jobs; give one method and one budget")
    with checking_input():
        from ..batch import Columns, InProcess, Job, Server, run
        from ..images import MAX_PIXELS
    [(name, pruner)] = runs
    engine: Engine
    if server is None:
        engine = InProcess(model, name, pruner.keep, max_new_tokens)
    else:
        engine = Server(server, model, max_new_tokens, None if keep is None else pruner.keep)
    columns = Columns(image_column, question_column, id_column)
    confined = None if root is None else str(root)
    job = Job(
        *(input, output, engine, question, columns, actors, batch_size, part_rows, address),
        root=confined,
        max_pixels=max_pixels or MAX_PIXELS,
    )
    with _bar() as progress, checking_input():
        summary = run(job, progress)
    if as_json:
        print_json([asdict(summary)])
    else:
        _show(summary)


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    """Rows done, rows a second and tokens saved, on standard error."""
    with progress_bar() as bar:
        task = bar.add_task("starting")

        def show(state: Progress) -> None:
            bar.update(task, completed=state.done, total=state.total)
            speed = bar.tasks[task].speed
            said = [] if speed is None else [f"{speed:,.1f} rows/s"]
            if state.visual_tokens:
                said.append(f"{1 - state.kept_tokens / state.visual_tokens:.0%} of visual tokens saved")
            bar.update(task, description=", ".join(said) or "starting")

        yield show


def _show(summary: Summary) -> None:
    columns = ("rows", "good", "bad", "before", "visual tokens", "seconds", "to start", "rows/s")
    tokens = f"{summary.visual_tokens:,} -> {summary.kept_tokens:,.0f}" if summary.visual_tokens else "unknown"
    cells = [
        *(f"{count:,}" for count in (summary.rows, summary.good, summary.bad, summary.before)),
        tokens,
        f"{summary.seconds:,.1f}",
        f"{summary.start_seconds:,.1f}",
        f"{summary.rows_per_second:,.2f}",
    ]
    caption = "Before: rows finished in earlier runs; to start: seconds of this run until the first rows."
    if summary.first_error:
        caption += f" The first error: {summary.first_error}"
    print_table(columns, [cells], caption)
