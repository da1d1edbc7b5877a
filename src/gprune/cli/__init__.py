"""`gprune`: thin commands over the library. Exit codes: 0 done, 2 wrong input, 1 anything else."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import typer

from .app import app as page
from .ask import ask
from .batch import batch
from .bench import bench
from .cost import cost
from .eval import evaluate
from .fidelity import fidelity
from .fit import fit
from .methods import methods
from .options import WrongInput
from .reproduce import reproduce
from .scenes import scenes
from .serve import serve
from .show import show
from .verify import verify

app = typer.Typer(
    name="gprune",
    help="Prune the visual tokens of multimodal LLMs: ask, show, measure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (ask, show, scenes, fidelity, fit, cost, batch, bench, methods, reproduce, verify):
    app.command()(command)
app.command("app")(page)
app.command("eval")(evaluate)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; warnings and errors are one line on standard error, never a traceback.

    Args:
        arguments: what follows the program's name; those of the process when None.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(message)
        try:
            app(arguments)
        except Exception as error:
            say(error)
            sys.exit(2 if isinstance(error, WrongInput) else 1)
    sys.exit(0)


def say(message: Exception | str) -> None:
    """Print a message as one line on standard error."""
    text = " ".join(str(message).split()) or type(message).__name__
    print(f"gprune: {text}", file=sys.stderr)
