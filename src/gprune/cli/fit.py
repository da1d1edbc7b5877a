"""`gprune fit`: train a scorer for `learned` on a model's own answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .loading import EMBEDDED, load_model
from .measuring import make_folder, scene_items
from .options import Keeps, Model, checking_input, read_list
from .printing import print_markdown
from .progress import progress_bar

PICTURES_LEARNED = 5000
"""Training pictures of the embedded benchmark that are asked about where nothing else is given."""


def fit(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the scorer; stopped and called again, it goes on there.")
    ],
    input: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of pictures, a picture, or a JSONL file with an image (a path, or several) and a question "
            "in each line; if left out, the model in the package is asked about training pictures of its benchmark.",
            metavar="INPUT",
        ),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(help="Asked of every picture that brings none; may be given several times."),
    ] = None,
    by_question: Annotated[
        bool, typer.Option("--by-question", help="The scorer reads the question too, not the picture alone.")
    ] = False,
    model: Model = EMBEDDED,
    keep: Keeps = "0.5,0.3,0.1",
    limit: Annotated[int | None, typer.Option(min=1, help="So many first items.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the optimizer.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Items in a step.")] = 8,
    rate: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-3,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.")] = 64,
    validate_every: Annotated[int, typer.Option(help="Steps between validations; the state is saved then.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the weights, the order of items and the noise.")] = 0,
) -> None:
    """Train a scorer on what a model answers to your pictures with all tokens; no labels, and the model stays frozen.

    A fifth of the pictures is held out: at the end the scorer stands there beside untrained methods.

    Example: `gprune fit photos/ --model path/to/model --keep 0.5,0.3,0.1 -o scorer`, then
    `gprune ask photo.png "What is this?" --model path/to/model --method learned:weights=scorer`
    """
    with checking_input():
        from ..evaluate.items import DEFAULT_QUESTIONS, read_items
        from ..fitting import FitSettings
        from ..fitting import fit as train
        from ..spec import parse_keep

        keeps = read_list(keep, "keep", parse_keep)
        settings = FitSettings(by_question, steps, batch_size, rate, max_new_tokens, validate_every, seed)
        if input is None:
            items = scene_items(model, question, limit or PICTURES_LEARNED, "train")
        else:
            items = read_items(input, question or DEFAULT_QUESTIONS)[:limit]
    make_folder(output)
    net, processor = load_model(model)
    with progress_bar() as progress, checking_input():
        task = progress.add_task("steps", total=steps)
        fitted = train(
            net,
            processor,
            items,
            output,
            keeps,
            settings=settings,
            progress=lambda step, loss: progress.update(task, completed=step, description=f"loss {loss:.3f}"),
        )
    for error in fitted.errors:
        print(f"gprune: left out, {error}", file=sys.stderr)
    print_markdown(fitted.fidelity.markdown())
