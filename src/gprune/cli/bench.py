"""`gprune bench`: how fast a model answers with and without pruning."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .loading import config_of, load_model
from .options import (
    AsJson,
    Keeps,
    Methods,
    baseline,
    checking_input,
    output_files,
    possible,
    read_list,
    read_runs,
    read_size,
    read_whole,
)
from .printing import print_json, print_markdown
from .progress import progress_bar

if TYPE_CHECKING:
    import torch

    from ..evaluate.throughput import Prompts, Speed, Workload

ON_GPU, ON_CPU = "llava-next-8b", "llava-next-0.5b"
"""What is measured if nothing is said: the paper's architecture, or one that two cores run in seconds."""

REPEATS_ON_GPU, REPEATS_ON_CPU = 10, 3
TOKENS_ON_GPU, TOKENS_ON_CPU = 32, 8


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            help="`embedded`, the hub id or folder of a checkpoint, or an architecture with random weights: "
            "`llava-next-8b`, `llava-next-0.5b`, `llava-1.5-7b`, `qwen2.5-vl-7b`, `smolvlm-256m`. If left out, "
            f"`{ON_GPU}` on a GPU and `{ON_CPU}` on a CPU."
        ),
    ] = None,
    method: Methods = "random,gprune,graphcover,divprune,fastv",
    keep: Keeps = "0.5,0.3,0.1",
    batch_size: Annotated[
        str, typer.Option(help="Prompts at once; several, comma-separated, are measured apart.")
    ] = "1",
    image_size: Annotated[
        str, typer.Option(help="WIDTHxHEIGHT in pixels; several, comma-separated, are measured apart.")
    ] = "640x480",
    new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Tokens of every answer. If left out, {TOKENS_ON_GPU} on a GPU and {TOKENS_ON_CPU} on a CPU.",
        ),
    ] = None,
    text_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt that are not visual.")] = 75,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Measured answers per method and ratio. If left out, {REPEATS_ON_GPU} on a GPU and "
            f"{REPEATS_ON_CPU} on a CPU.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(
            help="If left out, that of the checkpoint; of an architecture on a CPU float32, or bfloat16 where it has "
            "products of that."
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="Of transformers: `sdpa`, `eager`, `flash_attention_2`, ...; its choice if left out."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write OUTPUT.md and OUTPUT.json too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure samples and tokens a second, time to the first token, memory and FLOPs, unpruned and at each ratio.

    Example: `gprune bench --model llava-next-8b --method gprune,fastv --keep 0.3 --batch-size 1,8`
    """
    runs, untaken = read_runs(method, keep)
    batches = read_list(batch_size, "batch-size", _positive)
    sizes = read_list(image_size, "image-size", _image_size)
    files = [] if output is None else output_files(output)
    import torch

    from ..evaluate.throughput import Workload, measure_speed

    on_gpu = torch.cuda.is_available()
    name = model or (ON_GPU if on_gpu else ON_CPU)
    repeats = repeats or (REPEATS_ON_GPU if on_gpu else REPEATS_ON_CPU)
    new_tokens = new_tokens or (TOKENS_ON_GPU if on_gpu else TOKENS_ON_CPU)
    settings = [Workload(batch, size, text_tokens, new_tokens) for size in sizes for batch in batches]
    net, prompts, weights = _subject(name, dtype, settings)
    if attention is not None:
        with checking_input():
            net.set_attn_implementation(attention)
    runs, reasons = possible(net, [baseline(), *runs])
    left_out = list(dict.fromkeys([*untaken, *reasons]))  # often the same at every ratio
    with progress_bar() as progress:
        task = progress.add_task("", total=len(settings) * (len(runs) * repeats + (len(runs) if on_gpu else 1)))

        def finished(speed: Speed) -> None:
            progress.update(task, advance=1, description=f"{speed.method} keep={speed.keep}")

        speeds = measure_speed(net, prompts, runs, settings, repeats, finished=finished)
    from .. import host
    from ..evaluate.cells import versions
    from ..evaluate.throughput_table import rows, speed_tables

    table = rows(speeds)
    about = {
        "model": name,
        "weights": weights,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "dtype": str(net.dtype).removeprefix("torch."),
        "attention": host.backend_of(net),
        "threads": None if net.device.type == "cuda" else torch.get_num_threads(),
        "repeats": repeats,
        **versions(),
    }
    text = "\n".join([speed_tables(table), _notes(about, left_out)])
    content = json.dumps({"about": about, "left_out": left_out, "rows": table}, indent=1, default=str) + "\n"
    for file, each in zip(files, (content, text), strict=False):
        file.write_text(each)
    if as_json:
        print_json(table)
    else:
        print_markdown(text)


def _subject(
    name: str, dtype: str | None, settings: Sequence[Workload]
) -> tuple[Any, Callable[[Workload], Prompts], str]:
    """A model, what makes prompts for it, and where its weights are from.

    Settings that it has no prompts for are refused, before random weights are drawn: billions take a while.
    """
    import torch
    from transformers.utils import logging

    from ..evaluate.noise import build_prompts, process_prompts, random_model
    from ..families.architectures import ARCHITECTURES, architecture

    if name not in ARCHITECTURES:
        config_of(name, *ARCHITECTURES)
        net, processor = load_model(name)
        if dtype is not None:
            net = net.to(getattr(torch, dtype))

        def processed(setting: Workload) -> Prompts:
            return process_prompts(net, processor, setting.image_size, setting.text_tokens, setting.batch_size)

        _check(processed, settings)
        return net, processed, "checkpoint"
    logging.set_verbosity_error()
    config: Any = architecture(name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    default = config.dtype if device.type == "cuda" else _fast_on_cpu()
    kind = default if dtype is None else getattr(torch, dtype)

    def built(setting: Workload) -> Prompts:
        prompts = build_prompts(config, setting.image_size, setting.text_tokens, setting.batch_size)
        return {
            each: tensor.to(device, kind if tensor.is_floating_point() else None) for each, tensor in prompts.items()
        }

    _check(built, settings)
    return random_model(config, kind, device), built, "random"


def _fast_on_cpu() -> torch.dtype:
    """bfloat16 where the processor has products of it, else float32: emulated ones are many times slower."""
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if any(capabilities.get(f"{unit}_bf16") for unit in ("amx", "avx512")) else torch.float32


def _check(prompts: Callable[[Workload], Prompts], settings: Sequence[Workload]) -> None:
    with checking_input():
        for setting in settings:
            prompts(replace(setting, batch_size=1))


def _positive(text: str) -> int:
    value = read_whole(text)
    if value < 1:
        raise ValueError(f"{value} is no number of prompts; accepted are integers >= 1")
    return value


def _image_size(text: str) -> tuple[int, int]:
    size = read_size(text)
    if min(size) < 1:
        raise ValueError(f"{text!r} has no pixels; accepted are sizes of at least 1x1")
    return size


def _notes(about: dict[str, Any], left_out: Sequence[str]) -> str:
    """What the tables are of."""
    threads = "" if about["threads"] is None else f" (threads: {about['threads']})"
    packages = ", ".join(f"{name} {about[name]}" for name in ("gprune", "torch", "transformers", "python"))
    lines = [
        f"{about['model']}, {about['parameters']:,} parameters ({about['weights']} weights), {about['dtype']}, "
        f"{about['attention']} attention, on {about['device']}{threads}; {packages}.",
        f"Median of {about['repeats']} answers, in brackets the least and the most; × is how many times as fast as "
        "without pruning. KV cache and FLOPs (2 per multiply-add) are of one prompt, up to its first new token.",
        *(f"Left out, {reason}." for reason in left_out),
    ]
    return "\n\n".join(lines) + "\n"
