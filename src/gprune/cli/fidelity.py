"""`gprune fidelity`: which method and budget leave a model's own answers as they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from .loading import EMBEDDED, load_model
from .measuring import make_folder, scene_items
from .options import (
    AsJson,
    Keeps,
    Methods,
    Model,
    WrongInput,
    check_output,
    checking_input,
    possible,
    read_list,
    read_methods,
    read_runs,
)
from .printing import print_json, print_markdown
from .progress import progress_bar

PICTURES_ASKED = 50
"""Test pictures of the embedded benchmark that are asked about where nothing else is given."""


def fidelity(
    input: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of pictures, a picture, or a JSONL file with an image (a path, or several) and a question "
            "in each line; if left out, the model in the package is asked about pictures of its own benchmark.",
            metavar="INPUT",
        ),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(help="Asked of every picture that brings none; may be given several times."),
    ] = None,
    model: Model = EMBEDDED,
    method: Methods = "graphvote,graphcover,gprune,divprune,random",
    keep: Keeps = "0.5,0.3,0.1",
    target: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the tokens of answers that is to stay as it is.")
    ] = 0.98,
    limit: Annotated[int | None, typer.Option(min=1, help="So many first items.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Items at once.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the results; what is finished there is not run again."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw agreement over FLOPs, as PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far pruned answers stay those of the unpruned model: on your model and pictures, without labels.

    Example: `gprune fidelity photos/ --model path/to/model --keep 0.5,0.3,0.2 --target 0.98 -o results`
    """
    runs, _ = read_runs(method, keep)
    if question is not None and not all(each.strip() for each in question):
        raise WrongInput("a question is empty; accepted is any text; write it after --question, in quotes")
    if plot is not None:
        check_output(plot, ".png")
    with checking_input():
        from ..evaluate.items import DEFAULT_QUESTIONS, read_items
        from ..spec import parse_keep

        if plot is not None:
            from ..evaluate.figures import curves
        if input is None:
            items = scene_items(model, question, limit or PICTURES_ASKED, "test")
        else:
            items = read_items(input, question or DEFAULT_QUESTIONS)[:limit]
    if output is not None:
        make_folder(output)
    net, processor = load_model(model)
    runs, _ = possible(net, runs)
    from ..evaluate import fidelity as measuring

    with progress_bar() as progress:
        task = progress.add_task("items x methods", total=len(items) * (len(runs) + 1))
        measured = measuring.fidelity(
            net,
            processor,
            items,
            read_methods(method),
            read_list(keep, "keep", parse_keep),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            folder=None if output is None else output / "items",
            progress=lambda done: progress.advance(task, done),
        )
    for error in measured.errors:
        print(f"gprune: left out, {error}", file=sys.stderr)
    if plot is not None:
        cells = measured.cells(model)
        curves(cells, list(cells[0].scores), "flops").save(plot)
    advice = measured.recommendation(target)
    text = f"{measured.markdown()}\n{advice}\n"
    if output is not None:
        (output / "table.md").write_text(text)
        (output / "rows.json").write_text(json.dumps(measured.rows, indent=1, default=str) + "\n")
    if as_json:
        print_json(measured.rows)
        print(advice, file=sys.stderr)
    else:
        print_markdown(text)
