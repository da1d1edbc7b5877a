"""`gprune`: thin commands over the library. Exit codes: 0 done, 2 wrong input, 1 anything else."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Annotated, Any, NoReturn

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
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich alone takes as long as all else that help needs
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(command: Callable[..., None], name: str | None = None, **settings: Any) -> None:
    # Given as it is, the first line is folded in the list of commands; else it would be cut.
    app.command(name, short_help=(command.__doc__ or "").partition("\n")[0], **settings)(command)


for _command in (ask, show, scenes, fidelity, fit, cost, batch, bench, methods, reproduce, verify):
    _add(_command)
_add(page, "app")
_add(evaluate, "eval")
_add(serve, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})


HOSTS = ("torch", "transformers", "vllm")
"""What the behaviour of gprune depends on, where it is installed."""


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return
    from .. import __version__

    print(f"gprune {__version__}")
    print(f"python {platform.python_version()}")
    for package in HOSTS:
        with suppress(PackageNotFoundError):
            print(f"{package} {version_of(package)}")
    raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_versions,
            help="Print the versions of gprune and of what it runs on, and exit.",
        ),
    ] = False,
) -> None:
    """Prune the visual tokens of multimodal LLMs: ask, show, measure."""


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
