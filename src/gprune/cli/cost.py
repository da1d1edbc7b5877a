"""`gprune cost`: tokens, FLOPs and KV cache of a model with and without pruning, without its weights."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .loading import config_of
from .options import (
    RECOMMENDED,
    AsJson,
    Keeps,
    Methods,
    WrongInput,
    baseline,
    checking_input,
    read_list,
    read_runs,
    read_size,
    say_left_out,
)
from .printing import print_json, print_table


def cost(
    model: Annotated[
        str,
        typer.Option(
            help="`embedded`, `llava-next-8b`, `llava-next-0.5b`, `llava-1.5-7b`, or the hub id or folder of a "
            "checkpoint, of which only the config is read."
        ),
    ] = "llava-next-8b",
    image_size: Annotated[
        str, typer.Option(help="WIDTHxHEIGHT in pixels; several, comma-separated, for several images.")
    ] = "640x480",
    keep: Keeps = "0.5,0.3,0.1",
    method: Methods = RECOMMENDED,
    text_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt that are not visual.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Count what a prompt costs up to its first new token, unpruned and at each ratio.

    Example: `gprune cost --model llava-next-8b --image-size 640x480 --keep 0.5,0.3,0.1`
    """
    runs, _ = read_runs(method, keep)
    sizes = read_list(image_size, "image-size", read_size)
    from ..cost import cost as count
    from ..cost import countable
    from ..families.architectures import ARCHITECTURES, architecture

    accepted = [name for name in ARCHITECTURES if countable(architecture(name))]
    config = model if model in ARCHITECTURES else config_of(model, *accepted)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for name, pruner in (baseline(), *runs):
        try:
            with checking_input():
                spent = count(config, sizes, text_tokens, pruner)
        except WrongInput as error:
            if not rows:
                raise  # not even the unpruned model can be counted
            failed.append(f"{name}: {error}")
            continue
        rows.append(
            {
                "method": name,
                "keep": pruner.keep,
                "visual_tokens": spent.visual_tokens,
                "kept_tokens": spent.kept_tokens,
                "prompt_tokens": spent.prompt_tokens,
                "flops": spent.total,
                **{f"flops_{part}": value for part, value in spent.flops.items()},
                "flops_decode_step": spent.decode_flops,
                "macs": spent.macs,
                "kv_bytes": spent.kv_bytes,
            }
        )
    if len(rows) == 1:
        raise WrongInput(failed[0])
    say_left_out(failed)
    if as_json:
        print_json(rows)
    else:
        columns = ("method", "keep", "visual", "prompt", "TFLOPs", "share", "KV cache")
        caption = "FLOPs (2 per multiply-add) up to the first new token. --json has its parts and a decode step."
        print_table(columns, [_cells(row, rows[0]["flops"]) for row in rows], caption)


def _cells(row: dict[str, Any], unpruned: int) -> list[str]:
    return [
        row["method"],
        str(row["keep"]),
        f"{row['visual_tokens']:,} -> {row['kept_tokens']:,}",
        f"{row['prompt_tokens']:,}",
        f"{row['flops'] / 1e12:,.4g}",
        f"{row['flops'] / unpruned:.1%}",
        f"{row['kv_bytes'] / 2**20:,.1f} MiB",
    ]
