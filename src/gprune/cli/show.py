"""`gprune show`: the picture with what was dropped greyed out, and heatmaps of the scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .loading import EMBEDDED, load_model
from .options import (
    RECOMMENDED,
    AsJson,
    Keeps,
    Methods,
    Model,
    check_output,
    checking_input,
    print_json,
    read_list,
    read_pruners,
)

if TYPE_CHECKING:
    from ..attach import ImageReport
    from ..pruners import Method


def show(
    image: Annotated[Path, typer.Argument(help="A picture.", metavar="IMAGE")],
    keep: Keeps = "0.5,0.3,0.1",
    iterations: Annotated[
        str | None,
        typer.Option(help="Comma-separated: heatmaps of G-Prune's scores after so many iterations."),
    ] = None,
    method: Methods = RECOMMENDED,
    model: Model = EMBEDDED,
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG to write.")] = Path("gprune.png"),
    as_json: AsJson = False,
) -> None:
    """Draw which visual tokens are kept, side by side for several ratios.

    Example: `gprune show photo.jpg --keep 0.5,0.3,0.1 --iterations 0,1,2,5 -o kept.png`
    """
    pruners = read_pruners(method, keep)
    steps = [] if iterations is None else read_list(iterations, "iterations", int)
    check_output(output, ".png")
    with checking_input():
        from ..images import open_image
        from ..prompt import build_inputs
        from ..pruners import GPrune

        scorers = [GPrune(iterations=step) for step in steps]
        picture = open_image(image)
        from ..draw import centre_crop, draw, tiles_of
    from ..answering import images_kept

    net, processor = load_model(model)
    inputs = build_inputs(net, processor, [([picture], "describe the picture.")])
    kept = [(f"{name} keep={pruner.keep}", images_kept(pruner, net, inputs)[0]) for name, pruner in pruners]
    scores = [(f"scores, iterations={each.iterations}", images_kept(each, net, inputs)[0]) for each in scorers]
    with checking_input():
        box = centre_crop(processor, picture.size)
        drawn = draw(picture, kept, scores, box, tiles_of(net, inputs))
    drawn.save(output)
    if as_json:
        print_json([_row(name, p, report) for (name, p), (_, report) in zip(pruners, kept, strict=True)])
    else:
        print(f"wrote {output}", file=sys.stderr)


def _row(name: str, pruner: Method, report: ImageReport) -> dict[str, Any]:
    return {
        "method": name,
        "keep": pruner.keep,
        "visual_tokens": report.n_before,
        "kept_tokens": report.n_after,
        "edge_share": report.edge_share,
        "coverage": report.coverage,
    }
