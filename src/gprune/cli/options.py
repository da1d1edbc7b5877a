"""What the commands share: reading options, loading a model, printing rows."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console

from gprune.pruners import get_pruner
from gprune.pruners.base import Pruner
from gprune.tokens import Keep

EMBEDDED = "embedded"
T = TypeVar("T")

errors = Console(stderr=True, highlight=False)

Model = Annotated[
    str,
    typer.Option(help="Hub id or folder of a transformers checkpoint; the one in the package if left out."),
]
Methods = Annotated[
    str,
    typer.Option(help="Methods, comma-separated; settings follow a colon: `gprune:init=ones:similarity=0.7`."),
]
Keeps = Annotated[str, typer.Option(help="Comma-separated: 0.3 is a ratio, 100 a number of tokens per image.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a list of flat rows on standard output, and nothing else.")]


class WrongInput(Exception):
    """What the user gave cannot be used; the message says why and what can."""


@contextmanager
def checking_input() -> Iterator[None]:
    """Turn the errors that the library raises for bad arguments into `WrongInput`."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise WrongInput(str(error)) from error


def read_list(text: str, name: str, read: Callable[[str], T]) -> list[T]:
    """Read the comma-separated values of option `name`."""
    parts = [part.strip() for part in text.split(",")]
    try:
        return [read(part) for part in parts]
    except ValueError as error:
        raise WrongInput(f"--{name} {text}: {error}; give values separated by commas, without blanks") from error


def read_keep(text: str) -> Keep:
    """'0.3' is a ratio, '100' a number of tokens."""
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def read_pruner(text: str, keep: Keep) -> Pruner:
    """Build a pruner from `name` or `name:setting=value:setting=value`."""
    name, *settings = text.split(":")
    with checking_input():
        kind = get_pruner(name)
        known = [field.name for field in fields(kind) if field.name != "keep"]
        values: dict[str, Any] = {}
        for setting in settings:
            key, _, value = setting.partition("=")
            if key not in known or not value:
                raise ValueError(
                    f"method {text!r}: {name} has the settings {', '.join(known)}; write name:setting=value"
                )
            values[key] = _literal(value)
        return kind(keep, **values)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def load(name: str) -> tuple[Any, Any]:
    """Load a model and its processor, on the GPU if there is one."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == EMBEDDED:
        from gprune.scenes.model import load_embedded

        return load_embedded(device)
    try:
        processor = transformers.AutoProcessor.from_pretrained(name)
        model = transformers.AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WrongInput(
            f"--model {name} cannot be loaded ({reason}); accepted are the hub id or the folder of an image-text-to-text "
            f"checkpoint with its processor; leave the option out for the model in the package"
        ) from error
    return model.eval().to(device), processor


def check_output(path: Path, *endings: str) -> None:
    """Refuse an output path before any work is done."""
    if endings and path.suffix.lower() not in endings:
        raise WrongInput(f"output {path} must end in {' or '.join(endings)}; give another name")
    if not path.parent.is_dir():
        raise WrongInput(f"output {path}: the folder {path.parent} does not exist; make it first")


def print_json(rows: list[dict[str, Any]]) -> None:
    """Rows, alone on standard output."""
    print(json.dumps(rows, indent=2))
