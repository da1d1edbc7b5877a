"""`gprune show`: the picture with what was dropped striped, and heatmaps of the scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import GpruneError
from .loading import EMBEDDED, load_model
from .opening import open_given
from .options import (
    RECOMMENDED,
    AsJson,
    Keeps,
    Methods,
    Model,
    WrongInput,
    check_output,
    checking_input,
    possible,
    read_list,
    read_runs,
    read_whole,
    say_left_out,
)
from .printing import print_json

if TYPE_CHECKING:
    from ..attach import ImageReport
    from ..pruners import Method


def show(
    image: Annotated[
        str, typer.Argument(help="A picture: a file, an http or https URL, or - for standard input.", metavar="IMAGE")
    ],
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
    runs, _ = read_runs(method, keep)
    if all(pruner.acts == "nowhere" for _, pruner in runs):
        raise WrongInput("method none keeps every token, so that there is nothing to show; give another")
    steps = [] if iterations is None else read_list(iterations, "iterations", read_whole)
    check_output(output, ".png")
    with checking_input():
        from ..prompt import build_inputs
        from ..pruners import GPrune

        scorers = [GPrune(iterations=step) for step in steps]
        picture = open_given(image)
        from ..draw import centre_crop, draw, tiles_of
    from ..answering import images_kept

    net, processor = load_model(model)
    runs, _ = possible(net, [run for run in runs if run[1].acts != "nowhere"])
    with checking_input():
        inputs = build_inputs(net, processor, [([picture], "describe the picture.")])
    kept, failed = [], []
    for name, pruner in runs:
        try:
            kept.append((name, pruner, images_kept(pruner, net, inputs)[0]))
        except GpruneError as error:
            failed.append(f"{name}: {error}")
    if not kept:
        raise WrongInput(failed[0])
    say_left_out(failed)
    scores = [(f"scores, iterations={each.iterations}", images_kept(each, net, inputs)[0]) for each in scorers]
    with checking_input():
        box = centre_crop(processor, picture.size)
        titled = [(f"{name} keep={pruner.keep}", report) for name, pruner, report in kept]
        drawn = draw(picture, titled, scores, box, tiles_of(net, inputs))
    drawn.save(output)
    if as_json:
        print_json(_row(*each) for each in kept)
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
