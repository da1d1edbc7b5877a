"""What the commands share: their options and how they are read, and printing rows."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..errors import GpruneError

if TYPE_CHECKING:
    from ..pruners import Method

T = TypeVar("T")

RECOMMENDED = "auto"
"""The method of commands that answer or show with one; docs/methods.md says on what evidence."""

Model = Annotated[
    str,
    typer.Option(help="Hub id or folder of a transformers checkpoint; the one in the package if left out."),
]
Methods = Annotated[
    str,
    typer.Option(
        help="Methods, comma-separated, or all; settings follow a colon: `gprune:init=ones:similarity=0.7`. "
        "A mask is a picture, black outside: `foreground:mask=mask.png`."
    ),
]
Keeps = Annotated[
    str,
    typer.Option(
        help="Comma-separated: 0.3 is a ratio, 100 a number of tokens per image, cover:0.9 as few as cover 90 % of a "
        "picture, cover:0.9:at_most=0.5 but no more than half, own the number that prumerge finds."
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, a flat object in each line, and nothing else.")
]


class WrongInput(Exception):
    """What the user gave cannot be used; the message says why and what can."""


@contextmanager
def checking_input() -> Iterator[None]:
    """Turn what the library raises for bad arguments, or an extra that is not installed, into `WrongInput`."""
    try:
        yield
    except (GpruneError, ValueError, OSError, ImportError) as error:
        raise WrongInput(str(error)) from error


def read_list(text: str, name: str, read: Callable[[str], T]) -> list[T]:
    """Read the comma-separated values of option `name`; `read` raises ValueError for one that is not accepted."""
    try:
        return [read(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise WrongInput(f"--{name} {text}: {error}; separate several by commas") from error


def read_runs(methods: str, keeps: str, *, masked: bool = False) -> tuple[list[tuple[str, Method]], list[str]]:
    """Every method at every budget, each with its name as it was given: `name` or `name:setting=value:...`.

    A budget that a method cannot take is left out, with the reason, which is said too.

    Args:
        methods: "all" stands for every method, those that go by a mask only if `masked`.
        keeps: budgets.
        masked: every picture comes with its mask; else a method that goes by one must have one.

    Raises:
        WrongInput: an unknown method, a wrong setting or budget, or not one method that takes a budget.
    """
    from ..spec import parse_keep, takeable

    budgets = read_list(keeps, "keep", parse_keep)
    with checking_input():
        found, reasons = takeable(read_methods(methods, masked=masked), budgets, masked=masked)
    return _those_left(found, reasons), reasons


def read_methods(methods: str, *, masked: bool = False) -> list[str]:
    """Methods as they are written, comma-separated, and all of them for "all"; see `read_runs`."""
    given = read_list(methods, "method", str)
    return [each for name in given for each in (_every_method(masked) if name == "all" else [name])]


def _every_method(masked: bool) -> list[str]:
    from ..pruners import every_method

    return [name for name, kind in every_method().items() if masked or not {"mask", "scorer"} & set(kind.needs)]


def baseline() -> tuple[str, Method]:
    """The unpruned model, as `read_runs` would give it."""
    from ..pruners import Unpruned

    return Unpruned.name, Unpruned()


def read_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels, written as WIDTHxHEIGHT."""
    match = re.fullmatch(r"(\d+)[xX×](\d+)", text)
    if match is None:
        raise ValueError(f"{text!r} is not WIDTHxHEIGHT, for example 640x480")
    return int(match[2]), int(match[1])


def read_whole(text: str) -> int:
    """A whole number, of either sign."""
    if re.fullmatch(r"[+-]?\d+", text) is None:
        raise ValueError(f"{text!r} is not a whole number, for example 5")
    return int(text)


def check_output(path: Path, *endings: str) -> None:
    """Refuse the path of an output file before any work is done; what is there stays as it is."""
    if endings and path.suffix.lower() not in endings:
        raise WrongInput(f"output {path} must end in {' or '.join(endings)}; give another name")
    if not path.parent.is_dir():
        raise WrongInput(f"output {path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise WrongInput(f"output {path} is a folder; give the name of a file")
    is_new = not path.exists()
    try:
        path.open("ab").close()  # only trying tells: permissions say nothing of a full disk, or of /proc
    except OSError as error:
        raise WrongInput(f"output {path} cannot be written ({error.strerror}); give another name") from error
    if is_new:
        path.unlink()


def output_files(output: Path) -> list[Path]:
    """OUTPUT.json and OUTPUT.md, whether or not one of the endings was given."""
    stem = output.with_suffix("") if output.suffix in (".json", ".md") else output
    files = [stem.parent / f"{stem.name}{ending}" for ending in (".json", ".md")]
    for file in files:
        check_output(file)
    return files


def possible(model: Any, runs: list[tuple[str, Method]]) -> tuple[list[tuple[str, Method]], list[str]]:
    """The runs that this model allows, and of the others why not, which is said too; an error if there are none."""
    from ..attach import refusal

    found, reasons = [], []
    for name, pruner in runs:
        if reason := refusal(pruner, model):
            reasons.append(f"{name}: {reason}")
        else:
            found.append((name, pruner))
    return _those_left(found, reasons), reasons


def _those_left(runs: list[tuple[str, Method]], reasons: list[str]) -> list[tuple[str, Method]]:
    """The runs, unless for these reasons none is left that prunes; what was left out is said."""
    if reasons and all(pruner.acts == "nowhere" for _, pruner in runs):
        raise WrongInput(reasons[0])
    say_left_out(reasons)
    return runs


def say_left_out(reasons: Sequence[str]) -> None:
    """What is not done and why, each reason once, on standard error."""
    for reason in dict.fromkeys(reasons):
        print(f"gprune: left out, {' '.join(reason.split())}", file=sys.stderr)
