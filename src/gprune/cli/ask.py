"""`gprune ask`: an answer, and what it cost with and without pruning."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
    baseline,
    check_output,
    checking_input,
    possible,
    read_runs,
    say_left_out,
)
from .printing import print_json, print_table

if TYPE_CHECKING:
    from PIL import Image

    from ..answering import Reply
    from ..attach import ImageReport
    from ..cost import Cost
    from ..pruners import Method


def ask(
    images: Annotated[
        list[str],
        typer.Argument(
            help="One or more pictures: files, http or https URLs, or - for standard input.", metavar="IMAGE"
        ),
    ],
    question: Annotated[str, typer.Argument(help="What to ask about them.", metavar="QUESTION")],
    model: Model = EMBEDDED,
    method: Methods = RECOMMENDED,
    keep: Keeps = "0.3",
    compare: Annotated[bool, typer.Option("--compare", help="Ask the unpruned model too.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw what was kept of the first picture, as PNG.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 128,
    as_json: AsJson = False,
) -> None:
    """Ask a model about pictures, with only the visual tokens that count.

    Example: `gprune ask photo.jpg "what color is the star?" --keep 0.3 --compare --picture kept.png`
    """
    runs, _ = read_runs(method, keep)
    if not question.strip():
        raise WrongInput("the question is empty; accepted is any text; write it after the pictures, in quotes")
    if picture is not None:
        check_output(picture, ".png")
    with checking_input():
        from ..prompt import build_inputs

        pictures = [open_given(name) for name in images]
        if picture is not None:
            from ..draw import centre_crop, draw, tiles_of
    from transformers import TextStreamer

    from ..answering import reply
    from ..cost import cost_of_prompt

    net, processor = load_model(model)
    runs, _ = possible(net, [*([baseline()] if compare else []), *runs])
    if model == EMBEDDED:
        _say_unlike(images, pictures)
    with checking_input():
        inputs = build_inputs(net, processor, [(pictures, question)])
    rows, reports, failed = [], [], []
    answered: Sequence[ImageReport] = ()
    for name, pruner in runs:
        try:
            spent = cost_of_prompt(net, inputs, [(each.height, each.width) for each in pictures], pruner)
            with pruner.attach(net) as run:
                if len(runs) > 1:  # or else whoever comes first would look slow
                    net.generate(**inputs, max_new_tokens=1, do_sample=False)
                if not as_json:
                    print(f"{name}{'' if pruner.acts == 'nowhere' else f' keep={pruner.keep}'}: ", end="")
                streamer = (
                    None if as_json else TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
                )
                [answer] = reply(run, processor, inputs, max_new_tokens=max_new_tokens, streamer=streamer)
        except GpruneError as error:
            failed.append(f"{name}: {error}")
            continue
        answered = answer.images or answered
        reports += [(f"{name} keep={pruner.keep}", report) for report in answer.images[:1]]
        rows.append(_row(name, pruner, answer, spent))
    if not rows:
        raise WrongInput(failed[0])
    say_left_out(failed)
    if picture is not None:
        with checking_input():
            box = centre_crop(processor, pictures[0].size)
            drawn = draw(pictures[0], reports, box=box, tiles=tiles_of(net, inputs))
        drawn.save(picture)
    if as_json:
        print_json(rows)
    else:
        columns = ("method", "keep", "visual", "prompt", "GFLOPs", "KV cache", "seconds")
        caption = "FLOPs and KV cache: up to the first new token. Seconds: the whole answer."
        if fixed := sum(report.fixed for report in answered):
            caption += f" Among the visual tokens are {fixed} ends of rows or the like, all kept before the LLM."
        print_table(columns, [_cells(row) for row in rows], caption)


def _say_unlike(names: Sequence[str], pictures: Sequence[Image.Image]) -> None:
    """Say of which pictures the model in the package can know nothing: scenes come in a few sizes alone."""
    from ..scenes.vocabulary import CANVASES

    for name, picture in zip(names, pictures, strict=True):
        if picture.size not in CANVASES:
            print(
                f"gprune: {name} ({picture.width} x {picture.height}) is unlike the rendered scenes that the model in "
                f"the package was trained on, so its answers mean little; --model takes another model, and gprune "
                f"scenes --sample 7 -o DIR writes scenes",
                file=sys.stderr,
            )


def _row(name: str, pruner: Method, answer: Reply, spent: Cost) -> dict[str, Any]:
    return {
        "method": name,
        "keep": pruner.keep,
        "answer": answer.text.strip(),
        "visual_tokens": spent.visual_tokens,
        "kept_tokens": spent.kept_tokens,
        "coverage": min((each.coverage for each in answer.images if each.coverage is not None), default=None),
        "prompt_tokens": spent.prompt_tokens,
        "flops": spent.total,
        "kv_bytes": spent.kv_bytes,
        "seconds": round(answer.seconds, 4),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    covered = "" if row["coverage"] is None else f" covers {row['coverage']:.1%}"
    return [
        row["method"],
        str(row["keep"]),
        f"{row['visual_tokens']:,} -> {row['kept_tokens']:,}{covered}",
        f"{row['prompt_tokens']:,}",
        f"{row['flops'] / 1e9:,.2f}",
        f"{row['kv_bytes'] / 2**20:,.2f} MiB",
        f"{row['seconds']:.2f}",
    ]
