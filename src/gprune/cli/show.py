"""`gprune show`: the picture with what was dropped greyed out, and heatmaps of the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from gprune.cli.options import (
    EMBEDDED,
    AsJson,
    Keeps,
    Methods,
    Model,
    check_output,
    checking_input,
    errors,
    load,
    print_json,
    read_keep,
    read_list,
    read_pruner,
)
from gprune.cli.prompt import build_inputs
from gprune.images import open_image
from gprune.pruners import GPrune
from gprune.pruners.base import Pruner


def show(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    keep: Keeps = "0.5,0.3,0.1",
    iterations: Annotated[
        str | None,
        typer.Option(help="Comma-separated: heatmaps of G-Prune's scores after so many iterations."),
    ] = None,
    method: Methods = "gprune",
    model: Model = EMBEDDED,
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG to write.")] = Path("gprune.png"),
    as_json: AsJson = False,
) -> None:
    """Draw which visual tokens are kept, side by side for several ratios.

    Example: `gprune show photo.jpg --keep 0.5,0.3,0.1 --iterations 0,1,2,5 -o kept.png`
    """
    keeps = read_list(keep, "keep", read_keep)
    pruners = [read_pruner(name, k) for name in method.split(",") for k in keeps]
    steps = read_list(iterations, "iterations", int) if iterations else []
    with checking_input():
        heat = [GPrune(iterations=t) for t in steps]
        picture = open_image(image)
    check_output(output, ".png")
    net, processor = load(model)
    from gprune.draw import centre_crop, draw

    inputs = build_inputs(net, processor, [picture], "describe the picture.")
    kept = [(f"{p.name} keep={p.keep}", _report(net, inputs, p)) for p in pruners]
    warm = [(f"{t} iterations", _report(net, inputs, p)) for t, p in zip(steps, heat, strict=True)]
    draw(picture, kept, warm, box=centre_crop(processor, picture.size)).save(output)
    if as_json:
        print_json([_row(pruner, report) for pruner, (_, report) in zip(pruners, kept, strict=True)])
    else:
        errors.print(f"wrote {output}")


@torch.no_grad()
def _report(model: Any, inputs: Any, pruner: Pruner) -> Any:
    with checking_input():
        run = pruner.attach(model)
    with run:
        model(**inputs, use_cache=False, logits_to_keep=1)
    return run.images[0]


def _row(pruner: Pruner, report: Any) -> dict[str, Any]:
    return {
        "method": pruner.name,
        "keep": pruner.keep,
        "visual_tokens": report.n_before,
        "kept_tokens": report.n_after,
        "edge_share": report.edge_share,
    }
