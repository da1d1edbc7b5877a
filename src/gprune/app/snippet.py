"""What is on the page as Python and as commands."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from ..models import EMBEDDED
from ..spec import parse_pruner
from .choice import Choice


def python(model: str, picture: str, choice: Choice, max_new_tokens: int) -> str:
    """A program that prints the answers of the methods."""
    pruners = [parse_pruner(method, keep) for method, keep in choice.columns]
    names = sorted({type(pruner).__name__ for pruner in pruners})
    names += ["cover"] if choice.unit == "cover" else []
    return f"""\
from gprune import {", ".join(names)}
from gprune.images import open_image
from gprune.models import load
from gprune.prompt import build_inputs

model, processor = load({model!r})
inputs = build_inputs(model, processor, [([open_image({picture!r})], {choice.question!r})])
for pruner in [{", ".join(map(constructor, pruners))}]:
    with pruner(model) as run:
        output = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(pruner.name, run.images[0].n_after, "of", run.images[0].n_before, "tokens:", answer)
"""


def commands(
    model: str,
    picture: str,
    choice: Choice,
    iterations: int,
    max_new_tokens: int,
    *,
    origin: str | None = None,
) -> str:
    """The commands that print the answers and draw the pictures.

    Args:
        origin: the command that makes the file of the picture; None: the user has it.
    """
    options = [] if model == EMBEDDED else ["--model", model]
    options += ["--method", ",".join(choice.methods), "--keep", ",".join(map(str, choice.keeps))]
    asked = ["--compare", "--max-new-tokens", str(max_new_tokens)]
    drawn = ["--iterations", str(iterations), "-o", "kept.png"]
    lines = [
        *([] if origin is None else [origin]),
        _command("ask", [picture, choice.question], [*options, *asked]),
        _command("show", [picture], [*options, *drawn]),
    ]
    return "\n".join(lines)


def _command(name: str, arguments: list[str], options: list[str]) -> str:
    if any(argument.startswith("-") for argument in arguments):
        return shlex.join(["gprune", name, *options, "--", *arguments])
    return shlex.join(["gprune", name, *arguments, *options])


def constructor(pruner: Any) -> str:
    """The expression that makes a method, with the settings that are not the default."""
    given = [
        f"{field.name}={getattr(pruner, field.name)!r}"
        for field in fields(pruner)
        if field.name == "keep" or getattr(pruner, field.name) != field.default
    ]
    return f"{type(pruner).__name__}({', '.join(given)})"
