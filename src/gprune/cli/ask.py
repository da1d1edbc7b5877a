"""`gprune ask`: an answer, and what it cost with and without pruning."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from gprune.cli.options import (
    EMBEDDED,
    AsJson,
    Keeps,
    Methods,
    Model,
    check_output,
    checking_input,
    load,
    print_json,
    read_keep,
    read_list,
    read_pruner,
)
from gprune.cli.prompt import build_inputs
from gprune.images import open_image
from gprune.pruners.base import Pruner


def ask(
    images: Annotated[list[Path], typer.Argument(help="One or more pictures.", metavar="IMAGE...")],
    question: Annotated[str, typer.Argument(help="What to ask about them.")],
    model: Model = EMBEDDED,
    method: Methods = "gprune",
    keep: Keeps = "0.3",
    compare: Annotated[bool, typer.Option("--compare", help="Ask the unpruned model too.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw what was kept of the first picture, as PNG.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 128,
    as_json: AsJson = False,
) -> None:
    """Ask a model about pictures, with only the visual tokens that count.

    Example: `gprune ask photo.jpg "what color is the star?" --keep 0.3 --compare --picture kept.png`
    """
    keeps = read_list(keep, "keep", read_keep)
    pruners = [read_pruner(name, k) for name in method.split(",") for k in keeps]
    with checking_input():
        pictures = [open_image(path) for path in images]
    if picture is not None:
        check_output(picture, ".png")
    net, processor = load(model)
    inputs = build_inputs(net, processor, pictures, question)
    out = Console(highlight=False)
    rows, reports = [], []
    for pruner in ([None] if compare else []) + pruners:
        if not as_json:
            out.print(f"[bold]{_title(pruner)}[/bold]", end=" ")
        with checking_input():  # the model may be of a family that cannot be pruned
            run = None if pruner is None else pruner.attach(net)
        with nullcontext() if run is None else run:
            answer, seconds = _answer(net, processor, inputs, max_new_tokens, stream=not as_json)
        if run is not None and pruner is not None:
            reports.append((_title(pruner), run.images[0]))
        kept = None if run is None else sum(report.n_after for report in run.images)
        rows.append(_row(net, inputs, pictures, pruner, kept, answer, seconds))
    if picture is not None:
        from gprune.draw import draw

        draw(pictures[0], reports).save(picture)
    if as_json:
        print_json(rows)
    else:
        out.print(_table(rows))


def _title(pruner: Pruner | None) -> str:
    return "unpruned:" if pruner is None else f"{pruner.name} keep={pruner.keep}:"


@torch.no_grad()
def _answer(model: Any, processor: Any, inputs: Any, max_new_tokens: int, stream: bool) -> tuple[str, float]:
    from transformers import TextStreamer

    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    started = time.perf_counter()
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer)
    seconds = time.perf_counter() - started
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer.strip(), seconds


def _row(
    model: Any,
    inputs: Any,
    pictures: list[Image.Image],
    pruner: Pruner | None,
    kept: int | None,
    answer: str,
    seconds: float,
) -> dict[str, Any]:
    from gprune.cost import cost

    ids = inputs["input_ids"]
    visual = int((ids == model.config.image_token_id).sum())
    sizes = [(picture.height, picture.width) for picture in pictures]
    spent = cost(model, sizes, ids.shape[1] - visual, 1.0 if pruner is None else pruner)
    return {
        "method": "none" if pruner is None else pruner.name,
        "keep": 1.0 if pruner is None else pruner.keep,
        "answer": answer,
        "visual_tokens": visual,
        "kept_tokens": visual if kept is None else kept,
        "prompt_tokens": spent.prompt_tokens,
        "flops": spent.total,
        "kv_bytes": spent.kv_bytes,
        "seconds": round(seconds, 4),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(caption="FLOPs and KV cache: up to the first new token. Seconds: the whole answer.")
    for column in ("method", "keep", "visual tokens", "prompt tokens", "GFLOPs", "KV cache", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(
            row["method"],
            str(row["keep"]),
            f"{row['visual_tokens']:,} -> {row['kept_tokens']:,}",
            f"{row['prompt_tokens']:,}",
            f"{row['flops'] / 1e9:,.2f}",
            f"{row['kv_bytes'] / 2**20:,.2f} MiB",
            f"{row['seconds']:.2f}",
        )
    return table
