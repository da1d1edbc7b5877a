"""`gprune`: thin commands over the library. Exit codes: 0 done, 2 wrong input, 1 anything else."""

from __future__ import annotations

import sys

import typer

from gprune.cli.ask import ask
from gprune.cli.cost import cost
from gprune.cli.options import WrongInput
from gprune.cli.scenes import scenes
from gprune.cli.show import show

app = typer.Typer(
    name="gprune",
    help="Prune the visual tokens of multimodal LLMs: ask, show, measure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (ask, show, scenes, cost):
    app.command()(command)


def main() -> None:
    """Run the command line; errors are one line on standard error, never a traceback."""
    try:
        app()
    except WrongInput as error:
        _fail(error, 2)
    except KeyboardInterrupt:
        sys.exit(1)
    except Exception as error:
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    print(f"gprune: {error or type(error).__name__}", file=sys.stderr)
    sys.exit(code)
